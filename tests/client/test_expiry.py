"""How long a tape lives that nobody has ended."""

from __future__ import annotations

import pytest

from tokentape import ChatJob, Settings
from tokentape.operations import Operations


@pytest.mark.parametrize(("margin_s", "retention_s", "lives_s"), [(500, 100, 500), (100, 500, 500), (300, 300, 300)])
def test_an_unfinished_jobs_tape_outlives_its_deadline_by_the_margin_and_no_shorter_than_the_retention(
    margin_s: int, retention_s: int, lives_s: int
) -> None:
    settings = Settings.load({}, expiry_margin_s=margin_s, retention_s=retention_s)
    job = ChatJob.create({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})

    asked = next(Operations(settings, one_server=True).submit([job], fresh=True))

    assert asked.commands[0][-1] == lives_s * 1000
