"""Looks at the pages of the built site for what the builder lets pass. Called by script/docs.

    python script/check_site.py site

A page shows the files that it includes, whole, and no markup that was to be gone. The reference has every
field of every public class, every attribute of every error, and how a class is called. Exit code 1, and a line for each
that is wrong.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final, get_args

from pydantic import BaseModel

import tokentape

ROOT: Final = Path(__file__).parents[1]
INCLUDE: Final = re.compile(r'^--8<-- "(.*?)"$', re.MULTILINE)


class _Text(HTMLParser):
    """What a page says, without its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002 - as it is called
        self._hidden += tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in ("script", "style")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.said.append(data)


def squeezed(text: str) -> str:
    """A text without white space: markup moves it."""
    return "".join(text.split())


def text_of(page: Path) -> str:
    parser = _Text()
    parser.feed(page.read_text(encoding="utf-8"))
    return "".join(parser.said)


def built(source: Path, docs: Path, site: Path) -> Path:
    """Where the page of a file of docs/ stands."""
    name = source.relative_to(docs).with_suffix("")
    return site / (name.parent if name.name == "index" else name) / "index.html"


def included(path: str, root: Path) -> list[str]:
    """The text of an included file as a page shows it. Of one that is Markdown itself, the blocks."""
    text = (root / path).read_text(encoding="utf-8")
    return re.findall(r"^```text\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if path.endswith(".md") else [text]


def problems(root: Path, site: Path) -> Iterator[str]:
    """What is wrong with a site that was built from root/docs."""
    docs = root / "docs"
    for page in sorted(site.rglob("*.html")):
        if "--8" in text_of(page):
            yield f"{page.relative_to(site)}: shows the line of an include"
        if re.search(r"<t[dh]\b[^>]*>(?:(?!</t[dh]>).)*\\\|", page.read_text(encoding="utf-8"), re.DOTALL):
            yield f"{page.relative_to(site)}: shows a backslash before a bar in a table"
    for source in sorted(docs.rglob("*.md")):
        page = built(source, docs, site)
        if not page.is_file():
            yield f"{page.relative_to(site)}: is not there"
            continue
        said = squeezed(text_of(page))
        for path in INCLUDE.findall(source.read_text(encoding="utf-8")):
            if any(squeezed(text) not in said for text in included(path, root)):
                yield f"{page.relative_to(site)}: does not show {path}"


def attributes(cls: type) -> list[str]:
    """The public fields of a model, or what another class sets in its own `__init__`."""
    if issubclass(cls, BaseModel):
        return list(cls.model_fields)
    own = inspect.getsource(cls.__init__) if "__init__" in vars(cls) else ""
    return re.findall(r"^ +self\.([a-z]\w*)\b[^=\n]* = ", own, re.MULTILINE)


def classes() -> Iterator[type]:
    """The public ones, and those that stand in their fields."""
    todo: list[object] = [getattr(tokentape, name) for name in tokentape.__all__]
    seen: set[object] = set()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        todo += get_args(one)
        if isinstance(one, type) and one.__module__.partition(".")[0] == "tokentape":
            yield one
            if issubclass(one, BaseModel):
                todo += [field.annotation for field in one.model_fields.values()]


def reference_problems(site: Path) -> Iterator[str]:
    """What the reference lacks. A class that is not public stands there under its module's name."""
    pages = [(site / "reference" / name / "index.html") for name in ("python", "errors")]
    anchors = set(re.findall(r'\bid="([^"]+)"', "".join(page.read_text(encoding="utf-8") for page in pages)))
    said = squeezed("".join(map(text_of, pages)))
    for cls in classes():
        name = cls.__name__
        home = "tokentape" if name in tokentape.__all__ else cls.__module__
        for path in (f"{home}.{name}", *(f"{home}.{name}.{attribute}" for attribute in attributes(cls))):
            if path not in anchors:
                yield f"reference: has no {path}"
        if "__init__" in vars(cls) and not issubclass(cls, BaseModel) and f"{name}(" not in said:
            yield f"reference: does not say how {name} is called"


def main(site: str) -> int:
    found = [*problems(ROOT, Path(site)), *reference_problems(Path(site))]
    for problem in found:
        sys.stderr.write(f"docs: {problem}\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
