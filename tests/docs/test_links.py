"""Links inside the project lead somewhere, headings that they name included."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .conftest import DOCS, PAGES, ROOT, prose

_LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The headings of a page as links name them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=name)
def test_pages_of_the_site_link_to_files_of_the_site_only(page: Path) -> None:
    """A link from docs/ to a file outside of it is dead once the site is built."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).resolve().is_relative_to(DOCS), target
