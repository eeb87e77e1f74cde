"""All benchmarks, one after the other, each in a process of its own.

    script/bench [--runs N] [--quick] [ID...]      in an environment of its own, with all rivals
    python -m benchmarks.run …                     in this one; rivals that are not installed are left out

Prints a table. Where all of them were measured, also writes what they found: benchmarks/results.json with machine,
versions and command, docs/benchmarks.png, and the figures in benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from tokentape.embedded import bundled_binary

from .report import as_markdown, as_text, summary
from .stack import ROOT

BENCHMARKS: Final = {
    "W1": "worker_cpu",
    "W2": "concurrency",
    "W3": "delivery",
    "W4": "jobs",
    "W5": "fanout",
    "W6": "submit",
    "W7": "replay",
    "W8": "scale",
    "W9": "memory",
    "growth": "growth",
    "adapters": "adapters",
}
RESULTS: Final = ROOT / "benchmarks" / "results.json"
README: Final = ROOT / "benchmarks" / "README.md"
PICTURE: Final = ROOT / "docs" / "benchmarks.png"
BEGIN, END = "<!-- figures: written by script/bench -->\n", "<!-- end of figures -->\n"
#: One benchmark with five runs takes minutes. Whatever hangs for this long does not come to an end by itself.
_WAIT_S: Final = 3600.0
_PACKAGES: Final = (
    "tokentape",
    "aiohttp",
    "assistant-stream",
    "fastapi-resumable-stream",
    "hiredis",
    "httpx",
    "openai",
    "pydantic",
    "redis",
    "rq",
    "streaq",
    "uvloop",
)


def main() -> int:
    options = _options()
    chosen = options.ids or list(BENCHMARKS)
    arguments = [*(["--quick"] if options.quick else []), *(["--runs", str(options.runs)] if options.runs else [])]
    facts = about(arguments)
    reports: list[dict[str, Any]] = []
    for name in chosen:
        report = _one(name, arguments)
        if report is None:
            return 1
        reports.append(report)
        sys.stdout.write(as_text([report]) + "\n")
        sys.stdout.flush()
    sys.stdout.write(summary(reports))
    if not options.quick and not options.ids:
        write({**facts, "benchmarks": reports})
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("ids", nargs="*", choices=[*BENCHMARKS, []], metavar="ID", help=" ".join(BENCHMARKS))
    parser.add_argument("--runs", type=int, help="how often each is measured [5]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that all work, measures nothing")
    return parser.parse_args()


def _one(name: str, arguments: list[str]) -> dict[str, Any] | None:
    command = [sys.executable, "-m", f"benchmarks.bench_{BENCHMARKS[name]}", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, timeout=_WAIT_S, check=False)
    if done.returncode:
        sys.stderr.write(f"{name} failed with exit code {done.returncode}\n")
        return None
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def about(arguments: list[str]) -> dict[str, Any]:
    """What a figure means nothing without: when, on what, with what, and how busy it was."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES if _is_installed(name)}
    server = subprocess.run([bundled_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": " ".join(["script/bench", *arguments]),
        "machine": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "load_before": round(os.getloadavg()[0], 2),
        },
        "versions": {"python": platform.python_version(), "server": " ".join(server.split()[:3]), **versions},
    }


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(results: dict[str, Any]) -> None:
    """Keep what was found, where it is read."""
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    README.write_text(with_figures(README.read_text(), results))
    if importlib.util.find_spec("matplotlib") is None:
        sys.stderr.write("no picture: matplotlib is not installed\n")
        return
    from .picture import draw  # noqa: PLC0415  (only here is matplotlib needed)

    draw(results, PICTURE)


def with_figures(readme: str, results: dict[str, Any]) -> str:
    """The README with the figures of these results in their place."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + "\n" + as_markdown(results) + "\n" + END + after


if __name__ == "__main__":
    sys.exit(main())
