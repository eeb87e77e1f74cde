"""What script/docs looks for in the site that it has built."""

from __future__ import annotations

import html
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from .conftest import DOCS, ROOT


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_site", ROOT / "script" / "check_site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A project of one page, which includes one file, and its site, in which the file is highlighted."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text('```python\n--8<-- "app.py"\n```\n')
    (tmp_path / "app.py").write_text('if 1 < 2:\n    print("<b>")\n')
    (tmp_path / "site" / "page").mkdir(parents=True)
    shown = html.escape('if 1 < 2:\n    print("<b>")\n').replace("print", "<span>print</span>")
    (tmp_path / "site" / "page" / "index.html").write_text(f"<script>--8</script><pre>{shown}</pre>")
    return tmp_path / "site"


def test_a_page_that_shows_its_file_is_right(check: ModuleType, site: Path) -> None:
    assert list(check.problems(site.parent, site)) == []


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("<pre>nothing</pre>", "page/index.html: does not show app.py"),
        ('<pre>--<span>8</span> &lt; --"app.py"</pre>', "page/index.html: shows the line of an include"),
        (None, "page/index.html: is not there"),
    ],
)
def test_a_page_that_does_not_is_named(check: ModuleType, site: Path, page: str | None, problem: str) -> None:
    if page is None:
        (site / "page" / "index.html").unlink()
    else:
        (site / "page" / "index.html").write_text(page)

    assert problem in list(check.problems(site.parent, site))


def test_every_include_is_written_as_one_and_names_a_file(check: ModuleType) -> None:
    for page in DOCS.rglob("*.md"):
        written = [line for line in page.read_text().splitlines() if re.match(r"\W*--\W?8", line)]
        paths = check.INCLUDE.findall(page.read_text())

        assert len(written) == len(paths), page
        for path in paths:
            assert path.startswith("build/") or (ROOT / path).is_file(), path
