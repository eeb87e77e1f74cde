"""The pages of docs/ say what the code says: names, settings, log lines, errors, numbers; and their examples run."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import uuid
import xml.dom.minidom
from pathlib import Path
from typing import Any

import redis

import tokentape
from tokentape import ErrorInfo, Settings, testing
from tokentape.connection import Server
from tokentape.embedded import EmbeddedServer
from tokentape_worker import limits
from tokentape_worker.retry import decide

from .conftest import DOCS, PAGES, ROOT, Environment, blocks, run_shell, titled

OPERATIONS = (DOCS / "operations.md").read_text()
HOW_TO = DOCS / "how-to"


def sources(*folders: str) -> str:
    return "\n".join(path.read_text() for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))


# ---- the site


def test_the_navigation_names_every_page_and_no_other() -> None:
    named = re.findall(r"^ .*: (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)

    assert sorted(named) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_first_page_links_every_other() -> None:
    index = (DOCS / "index.md").read_text()
    named = set(re.findall(r"\]\((\S+\.md)\)", index))

    assert named == {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} - {"index.md"}


def test_the_site_is_built_in_ci() -> None:
    assert "script/docs\n" in (ROOT / ".ci" / "run").read_text()


def test_pictures_are_well_formed_and_small() -> None:
    for picture in DOCS.glob("*.svg"):
        xml.dom.minidom.parse(str(picture))
        assert picture.stat().st_size < 100_000, picture


def test_every_colour_of_a_drawing_has_another_in_the_dark() -> None:
    for picture in (DOCS / "data-flow.svg", DOCS / "tape.svg", DOCS / "recovery.svg"):
        (style,) = re.findall(r"<style>@media \(prefers-color-scheme:dark\)\{(.*)\}</style>", picture.read_text())
        drawn = picture.read_text().replace(style, "")

        assert set(re.findall(r'(?:fill|stroke)="#\w+"', drawn)) == set(re.findall(r"\[(.*?)\]", style)), picture


# ---- the reference


def test_the_reference_has_every_public_name_once() -> None:
    pages = "\n".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))

    assert sorted(re.findall(r"^::: tokentape\.(\w+)$", pages, re.MULTILINE)) == sorted(tokentape.__all__)


def test_the_reference_has_what_tests_of_applications_import() -> None:
    page = (DOCS / "reference" / "python.md").read_text()

    assert re.findall(r"^::: tokentape\.testing\.(\w+)$", page, re.MULTILINE) == [
        "Stack",
        "FakeStack",
        "Script",
        "EmbeddedServer",
    ]
    assert sorted(testing.__all__) == ["EmbeddedServer", "FakeStack", "Script", "Stack"]


def test_the_reference_has_every_command(tmp_path: Path) -> None:
    target = tmp_path / "commands.md"

    subprocess.run([sys.executable, ROOT / "script" / "command_reference.py", target], check=True, timeout=60)

    headings = re.findall(r"^## tokentape (.*)$", target.read_text(), re.MULTILINE)
    assert {"submit", "follow", "result", "cancel", "status", "worker", "batch run", "simulate", "demo"} <= set(
        headings
    )


def test_the_page_of_the_settings_is_that_of_the_code(tmp_path: Path) -> None:
    target = tmp_path / "settings.md"

    subprocess.run([sys.executable, ROOT / "script" / "settings_page.py", target], check=True, timeout=60)

    assert (DOCS / "settings.md").read_text() == target.read_text(), "run script/docs-settings"


# ---- operations


def test_the_table_of_log_lines_has_every_warning_and_error_and_nothing_else() -> None:
    code = sources("worker/tokentape_worker")
    every = dict(re.findall(r'log\.(?:info|warning|error)\(\s*"([^"]+)"()', code))
    grave = set(re.findall(r'log\.(?:warning|error)\(\s*"([^"]+)"', code))
    rows = re.findall(r"^\| (`.*?`) \| (?:info|warning|error) \|", OPERATIONS, re.MULTILINE)
    listed = set(re.findall(r"`([^`]+)`", " ".join(rows)))

    assert grave
    assert listed <= set(every)
    assert grave <= listed


def test_the_table_of_errors_has_every_type_that_a_job_ends_with() -> None:
    code = sources("worker/tokentape_worker", "tokentape")
    types = set(re.findall(r'ErrorInfo\(\s*type="(\w+)"', code)) - {"not_found"}  # for RQ's record; no tape stands
    section = OPERATIONS.split("## What a job's error means")[1].split("\n## ")[0]

    assert types
    assert types <= set(re.findall(r"`(\w+)`", section))


def test_the_fields_to_watch_are_those_of_the_overview() -> None:
    section = OPERATIONS.split("## What to watch")[1].split("\n## ")[0]

    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(tokentape.Overview.model_fields)


def test_the_times_of_recovery_are_those_of_the_readme() -> None:
    rows = re.findall(r"^\| (?:while|where) the server was .*$", (ROOT / "README.md").read_text(), re.MULTILINE)

    assert len(rows) == 2
    assert all(row in OPERATIONS for row in rows)


def test_no_page_promises_a_redis_cluster() -> None:
    """`tokentape doctor` calls one an error."""
    for page in PAGES:
        for paragraph in page.read_text().split("\n\n"):
            if re.search(r"\bcluster(?:s\b| mode)|of a cluster", paragraph, re.IGNORECASE):
                assert re.search(r"\b(?:not|Neither)\b", paragraph), page


# ---- settings


def test_settings_that_pages_name_exist() -> None:
    known = {f"TOKENTAPE_{name.upper()}" for name in Settings.model_fields} | {"TOKENTAPE_CONFIG"}
    known |= {"TOKENTAPE_REDIS_URL_FILE", "TOKENTAPE_TAPE_URL_FILE"}

    for page in DOCS.rglob("*.md"):
        assert set(re.findall(r"\bTOKENTAPE_[A-Z_]+", page.read_text())) <= known, page


def test_the_upstreams_take_the_models_that_the_page_says() -> None:
    (example,) = blocks(HOW_TO / "upstreams.md", "toml")

    settings = Settings.model_validate(tomllib.loads(example))

    models = ["gpt-4o-mini", "o3", "claude-sonnet-4-5", "gemini-2.5-flash", "azure-chat", "qwen3"]
    assert [settings.route(model) for model in models] == ["openai", "openai", "claude", "gemini", "azure", "local"]


def test_the_example_of_limits_is_read() -> None:
    (example,) = blocks(HOW_TO / "limits.md", "toml")

    upstream = Settings.model_validate(tomllib.loads(example)).upstreams["default"]

    assert upstream.requests_per_minute == 3000
    assert upstream.tokens_per_minute == 2_000_000


def test_the_tokens_of_an_answer_hold_up_the_next_call_as_the_page_of_limits_says(valkey: EmbeddedServer) -> None:
    page = " ".join((HOW_TO / "limits.md").read_text().split())
    said = re.search(r"at ([\d,]+) a minute an answer of ([\d,]+) holds up the next call for (\d+) s", page)
    assert said
    per_minute, used, held_s = (int(number.replace(",", "")) for number in said.groups())
    key = f"limits-page-{uuid.uuid4().hex}"

    with redis.Redis.from_url(valkey.url) as connection:
        server = Server(connection, limits.SCRIPTS)
        server.run([limits.CHARGE.call((key,), per_minute, used)])
        ((wait_ms, reserved),) = server.run([limits.ADMIT.call((key,), 0, per_minute, 0)])

    assert not int(reserved)
    assert held_s - 1 < int(wait_ms) / 1000 <= held_s


def test_a_429_fails_a_job_of_one_attempt_alone_as_the_page_of_limits_says() -> None:
    error = ErrorInfo(type="rate_limited", message="slow down", retryable=True, upstream_status=429)
    many = {"retry_after_s": 1.0, "left_s": 60.0, "hold_s": 3.0, "max_retry_after_s": 120.0, "dice": 0.0}

    assert "With `max_attempts = 1` nothing is called again" in (HOW_TO / "limits.md").read_text()
    assert decide(error, failures=0, budget=1, **many).action == "stop"
    assert decide(error, failures=0, budget=2, **many).action == "again"


def test_the_probe_is_named_with_what_it_asks() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        for after in re.findall(r"-m tokentape_worker\.health`?(.*)", page.read_text()):
            assert re.match(r" (?:live|ready)\b", after), page


# ---- how-to


def test_the_batch_runs_as_written_with_fewer_prompts(service: Environment, tmp_path: Path) -> None:
    page = HOW_TO / "many-prompts.md"
    for name, text in titled(page).items():
        (tmp_path / name).write_text(text.replace("100_000", "200"))
    exports = [f"export {name}={service[name]}" for name in ("TOKENTAPE_REDIS_URL", "TOKENTAPE_NAMESPACE")]

    done = run_shell([*exports, *blocks(page, "sh"), "python read_answers.py", "python many.py"], tmp_path)

    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^row-\d+ [1-9]", done.stdout, re.MULTILINE)) == 200
    assert len(re.findall(r"^job_\w{32} [1-9]", done.stdout, re.MULTILINE)) == 1000


def test_the_command_that_reads_a_tape_is_that_of_the_readme() -> None:
    (command,) = [block for block in blocks(ROOT / "README.md", "sh") if "XREAD" in block]
    (shell,) = [block for block in blocks(HOW_TO / "other-languages.md", "sh") if "XREAD" in block]

    assert command in shell


def test_two_namespaces_share_what_the_page_of_settings_says(valkey: EmbeddedServer) -> None:
    request: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Which?"}]}
    key = f"settings-page-{uuid.uuid4().hex}"

    with (
        redis.Redis.from_url(valkey.url) as server,
        testing.Stack(server=valkey) as one,
        testing.Stack(server=valkey) as other,
    ):
        said = []
        for stack, text in ((one, "one"), (other, "other")):
            stack.script(text=text)
            job = stack.client().submit(request=request, idempotency_key=key)
            said.append((job.id, job.result().text))
            keys = [found.decode() for found in server.scan_iter(f"*{job.id}*", count=10_000)]

        assert [text for _, text in said] == ["one", "other"]
        (job_id,) = {job_id for job_id, _ in said}
        assert [name for name in keys if name.startswith("rq:job:")] == [f"rq:job:{job_id}"]
        assert {name.partition(":")[0] for name in keys} == {"rq", one.settings.namespace, other.settings.namespace}
