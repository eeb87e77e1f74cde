"""What the reference shows of a docstring and a signature, as a reader needs it. Loaded by script/docs (mkdocs.yml).

- A default that is a constant's name is shown as its value: 600.0, not DEFAULT_WAIT_S.
- So is that of a model's field: {} and not Field(default_factory=dict).
- An attribute that `__init__` takes from an argument has the argument's type, and no value.
- What stands in `#:` above a field is its description, where it has no docstring.
- In docstrings, lines that begin with a `name`: are a list of options.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_OPTION = re.compile(r"`\w+`: ")


class Reference(griffe.Extension):
    """Works on what was read from the sources, before pages are made of it."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:  # noqa: ARG002 - as it is called
        if obj.docstring is not None:
            obj.docstring.value = with_options_listed(obj.docstring.value)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs: Any) -> None:  # noqa: ARG002 - as it is called
        if attr.docstring is None and (text := comment_above(attr)):
            attr.docstring = griffe.Docstring(text, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:  # noqa: ARG002 - as it is called
        # Not before: the constant may be another module's.
        for obj in everything(pkg):
            if isinstance(obj, griffe.Function):
                for parameter in obj.parameters:
                    parameter.default = constant(obj, parameter.default)
            elif isinstance(obj, griffe.Attribute) and isinstance(obj.parent, griffe.Class):
                obj.value = constant(obj, default_of_field(obj.value))
                if "property" not in obj.labels:
                    as_a_field(obj, obj.parent)


def with_options_listed(text: str) -> str:
    """The text with a list of each run of lines that begin with a `name`:, where there are two or more of them."""
    paragraphs = text.split("\n\n")
    for place, paragraph in enumerate(paragraphs):
        lines = paragraph.split("\n")
        options = [number for number, line in enumerate(lines) if _OPTION.match(line)]
        if len(options) > 1:
            listed = [f"- {line}" if number in options else f"  {line}" for number, line in enumerate(lines)]
            before = "\n".join(lines[: options[0]])
            paragraphs[place] = "\n\n".join(filter(None, (before, "\n".join(listed[options[0] :]))))
    return "\n\n".join(paragraphs)


def comment_above(attr: griffe.Attribute) -> str:
    """What stands in `#:` above an attribute."""
    if attr.lineno is None:
        return ""
    lines = attr.lines_collection[attr.filepath][: attr.lineno - 1]
    said: list[str] = []
    while lines and lines[-1].strip().startswith("#:"):
        said.insert(0, lines.pop().strip().removeprefix("#:").strip())
    return "\n".join(said)


def constant(obj: griffe.Object, value: Any) -> Any:
    """The value of the constant that a default names, or the default itself."""
    if not isinstance(value, griffe.ExprName):
        return value
    try:
        found = obj.modules_collection[value.canonical_path]
    except (KeyError, griffe.GriffeError):
        return value
    found = found.final_target if found.is_alias else found
    return found.value if isinstance(found, griffe.Attribute) and found.value is not None else value


def default_of_field(value: Any) -> Any:
    """What pydantic's Field gives where nothing is given."""
    if not isinstance(value, griffe.ExprCall) or str(value.function) != "Field":
        return value
    for argument in value.arguments:
        if not isinstance(argument, griffe.ExprKeyword):
            return argument
        if argument.name == "default":
            return argument.value
        if argument.name == "default_factory":
            return {"dict": "{}", "list": "[]"}.get(str(argument.value), f"{argument.value}()")
    return None


def as_a_field(attr: griffe.Attribute, owner: griffe.Class) -> None:
    """The attribute without what only its source's reader needs."""
    if "class-attribute" not in attr.labels:
        init = owner.members.get("__init__")
        arguments = init.parameters if isinstance(init, griffe.Function) else griffe.Parameters()
        if attr.annotation is None and str(attr.value) in arguments:
            attr.annotation = arguments[str(attr.value)].annotation
        attr.value = None
    attr.labels -= {"class-attribute", "instance-attribute"}


def everything(module: griffe.Object) -> list[griffe.Object]:
    found: list[griffe.Object] = []
    for member in module.members.values():
        if not member.is_alias:
            found += [member, *everything(member)]
    return found
