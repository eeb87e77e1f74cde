"""`import tokentape` and the command's help load almost nothing: counted in modules, since time says little."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import click
import pytest

import tokentape
from tokentape import cli

HELP = """
import contextlib, io
from tokentape.cli import main
with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
    main([{argument!r}])
assert "tokentape" in out.getvalue()
"""


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after running some code, without those that it begins with."""
    program = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*(set(sys.modules) - before), file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, check=True, text=True)
    return set(run.stderr.split())


def not_of_python(modules: set[str]) -> set[str]:
    return {name for name in modules if name.partition(".")[0] not in sys.stdlib_module_names}


def test_importing_the_package_loads_the_errors_and_nothing_else() -> None:
    modules = loaded_by("import tokentape")

    assert not_of_python(modules) == {"tokentape", "tokentape.errors"}
    assert modules.isdisjoint({"asyncio", "concurrent.futures", "inspect", "json", "logging", "socket", "subprocess"})
    assert len(modules) < 80, sorted(modules)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_load_click_and_nothing_else(argument: str) -> None:
    modules = loaded_by(HELP.format(argument=argument))

    assert {name.partition(".")[0] for name in not_of_python(modules)} == {"click", "tokentape"}
    assert {name for name in modules if name.startswith("tokentape")} == {
        "tokentape",
        "tokentape.cli",
        "tokentape.errors",
        "tokentape.exit_codes",
        "tokentape.finder",
        "tokentape.printable",
    }
    assert "asyncio" not in modules
    assert len(modules) < 250, sorted(modules)


def test_a_client_loads_nothing_of_the_services_nor_of_what_only_they_need() -> None:
    modules = {name.partition(".")[0] for name in loaded_by("from tokentape import Client, AsyncClient")}

    assert modules.isdisjoint({"aiohttp", "click", "httpx", "rich", "rq", "structlog", "tokentape_worker", "uvloop"})


def test_every_public_name_is_there_and_where_type_checkers_look_for_it() -> None:
    tree = ast.parse(Path(tokentape.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    homes = {
        name.name: statement.module
        for statement in typed.body
        if isinstance(statement, ast.ImportFrom)
        for name in statement.names
    }

    assert homes == tokentape._HOMES
    assert set(tokentape.__all__) <= set(dir(tokentape))
    for name in tokentape.__all__:
        assert getattr(tokentape, name).__name__ == name
    for name, module in homes.items():
        assert getattr(tokentape, name).__module__ == f"tokentape.{module}"


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'tokentape' has no attribute 'Klient'"):
        tokentape.Klient  # type: ignore[attr-defined]  # noqa: B018


@pytest.mark.parametrize("name", cli._BUILT_IN)
def test_the_list_of_commands_says_of_each_what_it_says_of_itself(name: str) -> None:
    context = click.Context(cli.tokentape)

    command = cli.tokentape.get_command(context, name)

    assert command is not None
    assert command.name == name
    assert command.get_short_help_str(limit=100) == cli._BUILT_IN[name][1]
