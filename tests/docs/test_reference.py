"""What script/docs makes of docstrings and signatures. .ci/run repeats it after `script/setup --docs`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .conftest import ROOT

griffe = pytest.importorskip("griffe", reason="needs script/setup --docs")

SOURCE = '''
from pydantic import BaseModel, Field
from .limits import LONG_S

class View(BaseModel):
    #: How long
    #: it waits.
    wait_s: float = LONG_S
    names: dict[str, str] = Field(default_factory=dict)
    alias: int = Field(0, alias="other")
    """Another name."""

class Missing(Exception):
    status = "failed"

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id

def submit(*, key: str, wait_s: float = LONG_S) -> None:
    """Submit one.

    How to:
    `key`: the same key,
    the same job.
    `wait_s`: seconds.

    `plain`: one alone is no list.
    """
'''


@pytest.fixture
def package(tmp_path: Path) -> Any:
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "__init__.py").write_text(SOURCE)
    (tmp_path / "sample" / "limits.py").write_text("LONG_S = 600.0\n")
    extensions = griffe.load_extensions(str(ROOT / "script" / "reference.py"))
    return griffe.load("sample", search_paths=[str(tmp_path)], extensions=extensions)


def test_a_default_is_shown_as_its_value(package: Any) -> None:
    assert str(package["submit"].parameters["wait_s"].default) == "600.0"
    assert str(package["View.wait_s"].value) == "600.0"


def test_a_field_has_its_comment_or_its_docstring_and_what_it_is_by_default(package: Any) -> None:
    assert package["View.wait_s"].docstring.value == "How long\nit waits."
    assert package["View.alias"].docstring.value == "Another name."
    assert (package["View.names"].value, str(package["View.alias"].value)) == ("{}", "0")
    assert not package["View.names"].labels & {"class-attribute", "instance-attribute"}


def test_an_attribute_of_an_error_has_the_type_of_the_argument(package: Any) -> None:
    job_id, status = package["Missing.job_id"], package["Missing.status"]

    assert (str(job_id.annotation), job_id.value) == ("str", None)
    assert status.value == "'failed'"


def test_options_of_a_docstring_are_a_list(package: Any) -> None:
    assert package["submit"].docstring.value == (
        "Submit one.\n\n"
        "How to:\n\n"
        "- `key`: the same key,\n  the same job.\n"
        "- `wait_s`: seconds.\n\n"
        "`plain`: one alone is no list."
    )
