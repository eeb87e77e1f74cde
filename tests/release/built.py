"""The wheel and the sdist: building them, and what they may hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "tokentape": ROOT / "tokentape",
    "tokentape_worker": ROOT / "worker/tokentape_worker",
    "tokentape_producer": ROOT / "producer/tokentape_producer",
}


class Built(NamedTuple):
    """Two files of one version."""

    wheel: Path
    sdist: Path

    @property
    def version(self) -> str:
        return self.wheel.name.split("-")[1]


def build(folder: Path) -> Built:
    """Build the sdist, and the wheel from the sdist, with the backend of this environment."""
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the build failed:\n{done.stdout}")
    (wheel,), (sdist,) = folder.glob("tokentape-*.whl"), folder.glob("tokentape-*.tar.gz")
    return Built(wheel, sdist)


def wheel_names(built: Built) -> set[str]:
    """What stands in the wheel beside its own records."""
    with zipfile.ZipFile(built.wheel) as wheel:
        return {name for name in wheel.namelist() if not name.startswith(f"tokentape-{built.version}.dist-info/")}


def wheel_metadata(built: Built) -> str:
    with zipfile.ZipFile(built.wheel) as wheel:
        return wheel.read(f"tokentape-{built.version}.dist-info/METADATA").decode()


def sdist_names(built: Built) -> set[str]:
    with tarfile.open(built.sdist) as sdist:
        return {name.partition("/")[2] for name in sdist.getnames()}


def source_names() -> set[str]:
    """The files of the three packages, by the names that they have in a wheel."""
    return {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
