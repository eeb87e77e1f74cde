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
        ("<td>a <code>b \\| c</code></td>", "page/index.html: shows a backslash before a bar in a table"),
        (None, "page/index.html: is not there"),
    ],
)
def test_a_page_that_does_not_is_named(check: ModuleType, site: Path, page: str | None, problem: str) -> None:
    if page is None:
        (site / "page" / "index.html").unlink()
    else:
        (site / "page" / "index.html").write_text(page)

    assert problem in list(check.problems(site.parent, site))


def test_the_reference_is_to_have_fields_attributes_of_errors_and_the_classes_in_fields(check: ModuleType) -> None:
    names = {cls.__name__: check.attributes(cls) for cls in check.classes()}

    assert {"Client", "JobView", "WorkerView", "Timings", "ToolCallDelta"} <= set(names)
    assert names["WorkerView"] == ["name", "lease_s", "jobs"]
    assert names["CorruptTape"] == ["job_id", "entry_id", "reason"]
    assert names["Entry"] == ["job_id", "position", "kind", "raw"]


def test_what_the_reference_lacks_is_named(check: ModuleType, tmp_path: Path) -> None:
    for name in ("python", "errors"):
        (tmp_path / "reference" / name).mkdir(parents=True)
        (tmp_path / "reference" / name / "index.html").write_text('<h3 id="tokentape.JobView">JobView</h3>')

    found = set(check.reference_problems(tmp_path))

    assert "reference: has no tokentape.JobView" not in found
    assert {
        "reference: has no tokentape.JobView.status",
        "reference: has no tokentape.JobNotFound.job_id",
        "reference: has no tokentape.tape.Timings",
        "reference: does not say how Client is called",
    } <= found


def test_every_include_is_written_as_one_and_names_a_file(check: ModuleType) -> None:
    for page in DOCS.rglob("*.md"):
        written = [line for line in page.read_text().splitlines() if re.match(r"\W*--\W?8", line)]
        paths = check.INCLUDE.findall(page.read_text())

        assert len(written) == len(paths), page
        for path in paths:
            assert path.startswith("build/") or (ROOT / path).is_file(), path
