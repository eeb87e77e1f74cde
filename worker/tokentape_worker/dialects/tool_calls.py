"""Which tool call a delta belongs to: upstreams number, name and repeat them in their own ways.

The API's way: the first delta of a call brings index, id, type and name; the others bring the index and a fragment of
the arguments. What else is sent, and how it is read:

- an index that begins at 1, skips numbers, or comes out of order: calls are numbered by first appearance;
- two calls under one index: another id together with a name, or another name once arguments have begun, opens a call.
  Another id alone does not; some servers make up a new one for every delta;
- no index: an id already known continues its call, a name opens one, and neither continues the last one;
- name and id on every delta, or empty: sent on once. A name that differs before the arguments begin is a fragment;
- no id at all: one is made of the job's id and the call's place, so that an answer can be sent back for it;
- arguments as an object: written as JSON;
- the same index twice in one chunk: one entry.

Two argument texts under one index without id and name cannot be told apart: they are kept as they came.
"""

from __future__ import annotations

import json
from typing import Any

from tokentape.chunk import ToolCallDelta


class ToolCall:
    """One call. `position` is its number in what is published."""

    __slots__ = ("arguments", "id", "id_is_made_up", "name", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.id = ""
        self.id_is_made_up = False
        self.name = ""
        self.arguments: list[str] = []

    def has_whole_arguments(self) -> bool:
        """Whether the arguments so far are a JSON text."""
        try:
            json.loads("".join(self.arguments))
        except (ValueError, RecursionError):
            return False
        return True


class ToolCalls:
    """The calls of one choice. `id_prefix` begins the ids that are made here."""

    __slots__ = ("_by_index", "_calls", "_id_prefix")

    def __init__(self, id_prefix: str) -> None:
        self._id_prefix = id_prefix
        self._calls: list[ToolCall] = []
        self._by_index: dict[int, ToolCall] = {}  # by the upstream's own index: the last call under it

    def __bool__(self) -> bool:
        return bool(self._calls)

    def are_whole(self) -> bool:
        """Whether every call's arguments are a JSON text."""
        return all(call.has_whole_arguments() for call in self._calls)

    def take_fragment(self, entry: ToolCallDelta) -> bool:
        """Take in an entry that is already as it should be, a fragment of arguments and no more. False: it is not."""
        call = self._by_index.get(entry.index)
        function = entry.function
        if call is None or call.position != entry.index or entry.id is not None:
            return False
        if function is None or function.name is not None or function.arguments is None:
            return False
        call.arguments.append(function.arguments)
        return True

    def put_right(self, entries: list[Any]) -> list[dict[str, Any]]:
        """The `tool_calls` of one delta, as they should have been."""
        fixed: dict[int, dict[str, Any]] = {}
        for entry in entries:
            if not isinstance(entry, dict):
                continue
            function = _function(entry)
            call, opened = self._find(entry, _text(function.get("name")), fixed)
            piece = self._piece(entry, function, call, opened)
            before = fixed.get(call.position)
            fixed[call.position] = piece if before is None else _joined(before, piece)
        return list(fixed.values())

    def _find(self, entry: dict[str, Any], name: str, in_this_chunk: dict[int, Any]) -> tuple[ToolCall, bool]:
        index = _index(entry.get("index"))
        id_ = _text(entry.get("id"))
        if index is not None:
            call = self._by_index.get(index)
            if call is None and not name and self._calls:
                call = self._known(id_) if id_ else self._calls[-1]
            elif call is not None and _is_another(call, id_, name):
                call = None
        else:
            call = self._known(id_)
            if call is None and not name and self._calls:
                call = self._calls[-1]
            elif call is None and name and not id_ and self._calls:
                last = self._calls[-1]
                repeated = last.name == name and not last.has_whole_arguments()
                call = last if repeated and last.position not in in_this_chunk else None
        opened = call is None
        if call is None:
            call = ToolCall(len(self._calls))
            self._calls.append(call)
        if index is not None:
            self._by_index[index] = call
        return call, opened

    def _known(self, id_: str) -> ToolCall | None:
        return next((call for call in reversed(self._calls) if call.id == id_), None) if id_ else None

    def _piece(self, entry: dict[str, Any], function: dict[str, Any], call: ToolCall, opened: bool) -> dict[str, Any]:
        piece = {**entry, "index": call.position}
        if opened:
            call.id = _text(entry.get("id"))
            if not call.id:
                call.id, call.id_is_made_up = f"{self._id_prefix}_{call.position}", True
            piece["id"] = call.id
            piece["type"] = _text(entry.get("type")) or ("custom" if "custom" in entry else "function")
        else:
            piece.pop("id", None)
            if not entry.get("type"):
                piece.pop("type", None)
        if "custom" in entry:  # its input is text, not JSON; nobody is known to send it in another way
            return piece
        arguments = function.pop("arguments", None)
        name = _text(function.pop("name", None))
        if opened or (name and name != call.name):
            call.name += name
            function["name"] = name
        if arguments is not None or opened:
            function["arguments"] = _arguments(arguments)
            call.arguments.append(function["arguments"])
        piece["function"] = function
        return piece


def _is_another(call: ToolCall, id_: str, name: str) -> bool:
    """Whether a delta under the index of a known call opens another one."""
    if not name:
        return False
    if id_ and id_ != call.id:
        return not (call.id_is_made_up and name == call.name)
    return not id_ and name != call.name and any(call.arguments)


def _function(entry: dict[str, Any]) -> dict[str, Any]:
    function = entry.get("function")
    if isinstance(function, dict):
        return dict(function)
    custom = entry.get("custom")
    return {"name": custom.get("name")} if isinstance(custom, dict) else {}


def _index(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 9:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _arguments(value: object) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _joined(before: dict[str, Any], piece: dict[str, Any]) -> dict[str, Any]:
    """Two entries for one call in the same chunk."""
    first, second = before.get("function", {}), piece.get("function", {})
    function = {**first, **second}
    for name in ("name", "arguments"):
        if name in first and name in second:
            function[name] = first[name] + second[name]
    return {**piece, **before, "function": function} if function else {**piece, **before}
