"""A process that is kept: started again, ended with its owner's word, given up where nothing would change."""

from __future__ import annotations

import asyncio
import errno
import io
import os
from pathlib import Path

import pytest

from tokentape.child import ChildFailed
from tokentape.errors import ConfigError
from tokentape.keeper import LONG_LIFE_S, Backoff, Keeper, how_it_ended, lines
from tokentape.process_log import ProcessLog

from .conftest import Environment, wait_until


def keeper(folder: Path, code: str, greeting: asyncio.Future[str] | None = None) -> tuple[Keeper, io.StringIO]:
    """A keeper of a program, and its log."""
    (folder / "program.py").write_text(code)
    environment: Environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
    }
    said = io.StringIO()
    return Keeper("program", "program", env=environment, log=ProcessLog(said), greeting=greeting), said


def test_pauses_double_to_a_bound_and_begin_anew_after_a_long_life() -> None:
    backoff = Backoff()

    short_lives = [backoff.after(0.0) for _ in range(9)]
    after_a_long_one = [backoff.after(LONG_LIFE_S), backoff.after(0.0)]

    assert short_lives == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    assert after_a_long_one == [0.5, 1]


async def test_what_ends_is_started_again_and_what_it_said_is_told(tmp_path: Path) -> None:
    mark = tmp_path / "lives"
    code = (
        "import sys, time\n"
        f"with open({str(mark)!r}, 'a') as file: file.write('x')\n"
        f"if open({str(mark)!r}).read() == 'x': sys.exit('no luck')\n"
        "print('serves', flush=True)\n"
        "time.sleep(600)\n"
    )
    one, said = keeper(tmp_path, code)
    keeping = asyncio.create_task(one.keep())

    await asyncio.to_thread(wait_until, lambda: "serves" in said.getvalue())
    one.stop()
    await keeping

    assert mark.read_text() == "xx"
    assert "program    no luck\n" in said.getvalue()
    assert "warning: program ended (exit code 1), starts again in 0.5 s\n" in said.getvalue()


async def test_wrong_settings_are_not_tried_again(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path, "import sys\nsys.stderr.write('error: lease_s: too long\\n')\nsys.exit(2)\n")

    with pytest.raises(ConfigError, match=r"^program: lease_s: too long$"):
        await one.keep()


async def test_one_that_has_greeted_is_tried_again_whatever_its_exit_code(tmp_path: Path) -> None:
    greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    mark = tmp_path / "lives"
    code = (
        "import sys, time\n"
        f"with open({str(mark)!r}, 'a') as file: file.write('x')\n"
        f"lives = len(open({str(mark)!r}).read())\n"
        "if lives == 2: sys.exit(2)\n"
        "print('hello', flush=True)\n"
        "if lives == 3: time.sleep(600)\n"
    )
    one, said = keeper(tmp_path, code, greeting)
    keeping = asyncio.create_task(one.keep())

    await asyncio.to_thread(wait_until, lambda: said.getvalue().count("program ready\n") == 2)
    one.stop()
    await keeping

    assert mark.read_text() == "xxx"
    assert "hello" not in said.getvalue()
    assert "warning: program ended (exit code 2), starts again in 1 s\n" in said.getvalue()


async def test_one_that_has_lived_is_tried_again_whatever_becomes_of_its_settings(tmp_path: Path) -> None:
    mark = tmp_path / "lives"
    code = (
        "import sys, time\n"
        f"with open({str(mark)!r}, 'a') as file: file.write('x')\n"
        f"lives = len(open({str(mark)!r}).read())\n"
        "if lives < 3: sys.exit(lives)\n"
        "print('serves', flush=True)\n"
        "time.sleep(600)\n"
    )
    one, said = keeper(tmp_path, code)
    keeping = asyncio.create_task(one.keep())

    await asyncio.to_thread(wait_until, lambda: "serves" in said.getvalue())
    one.stop()
    await keeping

    assert "warning: program ended (exit code 2), starts again in 1 s\n" in said.getvalue()


async def test_a_machine_that_has_no_process_left_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = asyncio.create_subprocess_exec
    asked: list[object] = []

    async def refuse_once(*command: object, **options: object) -> object:
        asked.append(command)
        if len(asked) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return await really(*command, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse_once)
    one, said = keeper(tmp_path, "import time\nprint('serves', flush=True)\ntime.sleep(600)\n")
    keeping = asyncio.create_task(one.keep())

    await asyncio.to_thread(wait_until, lambda: "serves" in said.getvalue())
    one.stop()
    await keeping

    assert "warning: program cannot be started (Too many open files), starts again in 0.5 s\n" in said.getvalue()


async def test_wrong_settings_told_as_json_are_told_in_words(tmp_path: Path) -> None:
    one, _ = keeper(tmp_path, 'import sys\nsys.stderr.write(\'{"error": {"message": "no lease"}}\\n\')\nsys.exit(2)\n')

    with pytest.raises(ConfigError, match=r"^program: no lease$"):
        await one.keep()


async def test_the_greeting_is_kept_out_of_the_log(tmp_path: Path) -> None:
    greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    one, said = keeper(tmp_path, "import time\nprint('hello', flush=True)\ntime.sleep(600)\n", greeting)
    keeping = asyncio.create_task(one.keep())

    words = await greeting
    one.kill()
    await keeping

    assert words == "hello"
    assert "hello" not in said.getvalue()


async def test_one_that_ends_before_its_greeting_is_given_up_with_its_last_words(tmp_path: Path) -> None:
    greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    one, _ = keeper(tmp_path, "import sys\nsys.exit('no port')\n", greeting)

    with pytest.raises(ChildFailed, match=r"program ended \(exit code 1\): no port"):
        await one.keep()


async def test_a_task_that_is_cancelled_takes_the_process_with_it(tmp_path: Path) -> None:
    greeting: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    one, _ = keeper(tmp_path, "import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(600)\n", greeting)
    keeping = asyncio.create_task(one.keep())
    pid = int(await greeting)

    keeping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await keeping

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


async def test_lines_of_any_length_and_bytes_come_through() -> None:
    stream = asyncio.StreamReader()
    stream.feed_data(b"one\n\xff\n" + b"x" * 200_000 + b"\nlast")
    stream.feed_eof()

    said = [line async for line in lines(stream)]

    assert said[:2] == ["one", "\N{REPLACEMENT CHARACTER}"]
    assert "".join(said[2:-1]) == "x" * 200_000
    assert said[-1] == "last"


@pytest.mark.parametrize(
    ("code", "words"),
    [(1, "ended (exit code 1)"), (-9, "was ended by SIGKILL"), (-250, "was ended by signal 250")],
)
def test_exit_codes_in_words(code: int, words: str) -> None:
    assert how_it_ended(code) == words
