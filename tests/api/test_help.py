"""`help(tokentape)` names everything public, and everything public says what it is: types, units, errors."""

from __future__ import annotations

import inspect
import pydoc
import re
from collections.abc import Callable, Iterator
from typing import Any, get_type_hints

import pytest
from pydantic import BaseModel

import tokentape
from tokentape import errors, testing

#: How the name of a number of seconds, milliseconds or bytes ends; `_at` is a moment.
UNIT = re.compile(r"(_s|_ms|_bytes|_at)$")
#: A header's own name, in which it is written to the simulator.
RETRY_AFTER = "retry_after"
#: Raised by Python, as the docstrings say.
BUILT_IN = {"ValueError", "RuntimeError"}

PUBLIC: dict[str, Any] = {
    **{name: getattr(tokentape, name) for name in tokentape.__all__},
    **{f"testing.{name}": getattr(testing, name) for name in testing.__all__},
}
CLASSES: dict[str, type] = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
MODELS: dict[str, type[BaseModel]] = {name: thing for name, thing in CLASSES.items() if issubclass(thing, BaseModel)}


def methods(owner: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What a class has that is public and ours, properties as their getters."""
    for base in owner.__mro__:
        if base.__module__.startswith("tokentape"):
            for name, member in vars(base).items():
                plain = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                if not name.startswith("_") and inspect.isfunction(plain):
                    yield name, plain


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)},
    **{f"{owner}.{name}": method for owner, thing in CLASSES.items() for name, method in methods(thing)},
}


def test_help_opens_with_a_sentence_on_every_public_name() -> None:
    summary = (tokentape.__doc__ or "").partition("To begin with")[2]

    assert {name for name in tokentape.__all__ if not re.search(rf"\b{name}\b", summary)} == set()
    assert set(re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", summary)) <= set(tokentape.__all__)


def test_help_can_be_rendered_and_shows_the_methods() -> None:
    text = pydoc.plain(pydoc.render_doc(tokentape))

    assert "Enqueue one chat job." in text
    assert "tokentape.testing" in text


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_says_what_it_is(name: str) -> None:
    said = PUBLIC[name].__dict__.get("__doc__") if name in CLASSES else PUBLIC[name].__doc__

    assert said
    assert said.splitlines()[0].endswith((".", ":"))
    # What dataclasses and pydantic would write of themselves.
    assert not said.startswith((f"{name}(", "!!! abstract"))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_does_and_of_which_types(name: str) -> None:
    function = FUNCTIONS[name]
    parameters = list(inspect.signature(function).parameters.values())

    assert function.__doc__
    assert all(one.annotation is not one.empty for one in parameters if one.name not in ("self", "cls"))
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_error_that_is_told_of_is_one_that_can_be_caught(name: str) -> None:
    raised = re.findall(r"Raises? ((?:[^.]|\.\w)*)", FUNCTIONS[name].__doc__ or "")

    told = {word for part in raised for word in re.findall(r"\b[A-Z][a-z]+[A-Z]\w+", part)}

    assert told <= {name for name in tokentape.__all__ if name in vars(errors)} | BUILT_IN


@pytest.mark.parametrize("name", MODELS)
def test_a_number_of_seconds_or_bytes_has_its_unit_in_its_name(name: str) -> None:
    fields = MODELS[name].model_fields

    fractions = [field for field, info in fields.items() if info.annotation in (float, float | None)]

    assert [field for field in fractions if not UNIT.search(field)] in ([], [RETRY_AFTER])


@pytest.mark.parametrize("name", MODELS)
def test_help_says_of_every_field_what_it_is(name: str) -> None:
    fields = set(MODELS[name].model_fields)

    told = set(re.findall(r"`(\w+)`", MODELS[name].__doc__ or ""))

    assert name in {"Settings", "Upstream", "testing.Script"} or fields <= told  # theirs stand beside each


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith(("Client.", "AsyncClient."))])
def test_a_call_that_asks_a_server_tells_its_errors_and_whether_to_repeat_it(name: str) -> None:
    said = FUNCTIONS[name].__doc__ or ""

    if name.endswith((".job", ".close")):
        assert "Asks no server" in said or "Safe to repeat" in said
        return
    assert "Raises" in said
    assert re.search(r"[Ss]afe to repeat|sent again", said)


@pytest.mark.parametrize(("blocking", "asyncio"), [("Client", "AsyncClient"), ("Job", "AsyncJob")])
def test_both_clients_have_the_same_methods_with_the_same_parameters(blocking: str, asyncio: str) -> None:
    def shape(owner: str) -> dict[str, list[tuple[str, Any, str]]]:
        return {
            name: [(one.name, one.default, str(one.kind)) for one in inspect.signature(method).parameters.values()]
            for name, method in methods(CLASSES[owner])
        }

    assert shape(blocking) == shape(asyncio)


@pytest.mark.parametrize("name", CLASSES)
def test_the_annotations_can_be_looked_up_while_running(name: str) -> None:
    for method, function in methods(CLASSES[name]):
        if name.startswith("testing."):
            continue  # theirs are imported when they are first needed
        assert get_type_hints(function), method
