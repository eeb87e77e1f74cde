"""The tools of a request and which of them are to be called, as both translations read them.

| tool_choice | mode | functions |
|---|---|---|
| auto, none, required | the same | all |
| a function | required | that one |
| allowed_tools | auto or required | those that are allowed |

The other APIs have functions alone. A choice that cannot be kept, because there is no such function (any more), is
refused like any other field.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from tokentape.errors import InvalidRequest

from .drops import Drops
from .request import object_at, objects_at, text_at


class Function(NamedTuple):
    """One function that is offered. `parameters` is its JSON schema; `own` holds fields in the API's own words."""

    name: str
    description: str | None
    parameters: Mapping[str, Any]
    strict: bool
    own: dict[str, Any]


class Choice(NamedTuple):
    """`mode` is auto, none or required. `names`: of the functions that may be called, None for all.

    `single`: the request named one function, not a list of those that are allowed.
    """

    mode: str
    names: tuple[str, ...] | None = None
    single: bool = False


def functions_of(asked: Mapping[str, Any], drops: Drops, own: Collection[str] = ()) -> list[Function]:
    """The functions among the tools. `own`: what the API knows of a tool, and is sent as it is."""
    functions = []
    for where, tool in objects_at(asked, "tools", ""):
        if tool.get("type", "function") != "function":
            drops.unsupported(f"{where}.type", f"the upstream's API has no counterpart of {tool.get('type')!r} tools")
            continue
        drops.beyond({"type", "function", *own}, tool, where)
        own_fields = {name: tool[name] for name in own if tool.get(name) is not None}
        functions.append(_function(object_at(tool, "function", where), f"{where}.function", own_fields, drops))
    return functions


def _function(function: Mapping[str, Any], where: str, own: dict[str, Any], drops: Drops) -> Function:
    drops.beyond({"name", "description", "parameters", "strict"}, function, where)
    parameters = {} if function.get("parameters") is None else object_at(function, "parameters", where)
    description = function.get("description") or None
    return Function(text_at(function, "name", where), description, parameters, bool(function.get("strict")), own)


def choice_of(
    asked: Mapping[str, Any], functions: Collection[Function], drops: Drops, *, others: bool = False
) -> Choice | None:
    """Which functions are to be called; None where the request does not say. `others`: there are other tools too."""
    choice = asked.get("tool_choice")
    if choice is None:
        return None
    if choice in ("auto", "none"):
        return Choice(choice)
    if not functions and not (others and choice == "required"):
        drops.unsupported("tool_choice", "there are no functions to choose from")
        return None
    if choice == "required":
        return Choice("required")
    if isinstance(choice, Mapping):
        return _chosen(choice, {function.name for function in functions}, drops)
    drops.unsupported("tool_choice", "must be auto, required, none, a function or allowed_tools")
    return None


def _chosen(choice: Mapping[str, Any], offered: Collection[str], drops: Drops) -> Choice | None:
    kind = choice.get("type")
    if kind == "function":
        drops.beyond({"type", "function"}, choice, "tool_choice")
        name = _name(choice, "tool_choice", offered, drops)
        return Choice("required", (name,), single=True) if name else None
    if kind == "allowed_tools":
        drops.beyond({"type", "allowed_tools"}, choice, "tool_choice")
        return _allowed(object_at(choice, "allowed_tools", "tool_choice"), offered, drops)
    drops.unsupported("tool_choice.type", f"must be function or allowed_tools, not {kind!r}")
    return None


def _allowed(allowed: Mapping[str, Any], offered: Collection[str], drops: Drops) -> Choice | None:
    where = "tool_choice.allowed_tools"
    drops.beyond({"mode", "tools"}, allowed, where)
    mode = allowed.get("mode", "auto")
    if mode not in ("auto", "required"):
        raise InvalidRequest("must be auto or required", field=f"{where}.mode")
    names = []
    for at, tool in objects_at(allowed, "tools", where):
        if tool.get("type", "function") != "function":
            drops.unsupported(f"{at}.type", f"the upstream's API has no counterpart of {tool.get('type')!r} tools")
        elif name := _name(tool, at, offered, drops):
            names.append(name)
    if not names:
        drops.unsupported(where, "allows none of the functions")
        return None
    return Choice(mode, tuple(names))


def _name(tool: Mapping[str, Any], where: str, offered: Collection[str], drops: Drops) -> str:
    name = text_at(object_at(tool, "function", where), "name", f"{where}.function")
    if name in offered:
        return name
    drops.unsupported(f"{where}.function.name", f"{name!r} is not among the functions")
    return ""
