"""Run by test_memory.py in a process of its own: check a large input, fly one window of it, say what that took.

Arguments: the number of lines, a folder. The environment names the server. Prints the peak of memory in MB.
"""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import rich.progress  # noqa: F401 - the command has it loaded on a terminal

from tokentape import Settings
from tokentape_producer import commands
from tokentape_producer.batch import Batch, Options, Stopped, identity
from tokentape_producer.input_file import InputFile
from tokentape_producer.output_files import OutputFiles, default_errors, new_record
from tokentape_producer.progress import Display
from tokentape_producer.servers import Servers

LINE = (
    '{"custom_id":"request number %d","method":"POST","url":"/v1/chat/completions","body":{"model":"m",'
    '"messages":[{"role":"user","content":"Say something about the number %d, and then something else."}]}}\n'
)


def main(lines: int, folder: Path) -> None:
    path, out = folder / "in.jsonl", folder / "out.jsonl"
    with path.open("w") as file:
        file.writelines(LINE % (number, number) for number in range(lines))
    errors, options = default_errors(out), Options()
    with InputFile(path) as source:
        checked = source.check()
        batch_id = identity(checked.sha256, upstream=None, model=None)
        record = new_record(out, errors, batch_id=batch_id, input_sha256=checked.sha256, upstream=None, model=None)
        with OutputFiles(out, errors, record) as files, Servers(Settings.load()) as servers:
            batch: Batch | None = None

            def full() -> bool:
                return batch is not None and batch.counts.in_flight >= options.window

            batch = Batch(source, checked, files, servers, options, observer=Display(), stop=full)
            try:
                batch.run()
            except Stopped:
                sys.stdout.write(f"{checked.requests} {peak_mb()}\n")


def peak_mb() -> int:
    """Return the most memory that this program held, in MB.

    On Linux not from getrusage: its figure outlives exec, so that it is never less than what the process that started
    this one held at that moment, and would measure the test run. VmHWM starts anew with the program.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)):
        return round(int(found[1]) / 2**10)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10))


if __name__ == "__main__":
    assert commands.batch is not None
    main(int(sys.argv[1]), Path(sys.argv[2]))
