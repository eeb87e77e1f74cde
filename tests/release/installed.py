"""Run by the Python of a fresh environment: is every module there, from there, and can it be imported?

    python -I installed.py VERSION [WITHOUT…]

Prints how many modules there are. WITHOUT names those whose packages are not installed.
"""

from __future__ import annotations

import pkgutil
import sys
from importlib import import_module, metadata
from pathlib import Path

PACKAGES = ("tokentape", "tokentape_worker", "tokentape_producer")


def modules(package: str) -> list[str]:
    found = pkgutil.walk_packages(import_module(package).__path__, f"{package}.")
    return [package, *(module.name for module in found)]


def main(version: str, *without: str) -> int:
    names = [name for package in PACKAGES for name in modules(package) if name not in without]
    for name in names:
        place = Path(import_module(name).__file__ or "")
        if not place.is_relative_to(sys.prefix):
            sys.exit(f"{name} is imported from {place}, which is not in {sys.prefix}")
    for said in (metadata.version("tokentape"), import_module("tokentape").__version__):
        if said != version:
            sys.exit(f"the version is {said}, not {version}")
    points = [*metadata.entry_points(group="tokentape.commands"), *metadata.entry_points(group="tokentape.parts")]
    if not points:
        sys.exit("there are no entry points")
    for point in points:
        point.load()
    return len(names)


if __name__ == "__main__":
    print(main(*sys.argv[1:]))  # noqa: T201 - what the caller reads
