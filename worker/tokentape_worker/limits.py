"""Limits per upstream that all workers share: `requests_per_minute` and `tokens_per_minute`.

Requests are spaced evenly, with one second's worth that may come at once: a call reserves its moment, on the server's
clock, and waits for it. Tokens are known only after an answer, so they are charged then, and paid off at the limit's
pace: until they are, no further call begins. Calls that were under way overshoot by what they use.

A moment further away than `hold_s` is not reserved: the job gives its slot back and asks again later.
"""

from __future__ import annotations

import asyncio
import random
from typing import Final

from tokentape.queue import QueueKeys
from tokentape.scripts import load
from tokentape.settings import Settings, Upstream

from .ledger import Ledger

ADMIT: Final = load("tokentape_worker", "admit", "tokentape/_clock")
CHARGE: Final = load("tokentape_worker", "charge", "tokentape/_clock")
SCRIPTS: Final = (ADMIT, CHARGE)


class Limits:
    """The limits of one worker's upstreams. Costs nothing for an upstream without any."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._upstreams = settings.upstreams
        self._keys = QueueKeys(settings.namespace)
        self._hold_s = settings.hold_s
        self._ledger = ledger

    async def wait_for_turn(self, name: str) -> float:
        """Wait until a call may begin. -> 0.0, or the seconds after which to ask again, where that is too long."""
        upstream = self._limited(name)
        if upstream is None:
            return 0.0
        hold_ms = round(self._hold_s * 1000)
        command = ADMIT.call(
            (self._keys.limits(name),), upstream.requests_per_minute, upstream.tokens_per_minute, hold_ms
        )
        wait_ms, reserved = await self._ledger.one(command)
        if not int(reserved):
            # Spread, so that those who were sent away do not all come back at once.
            return int(wait_ms) / 1000 * random.uniform(1.0, 1.2)
        await asyncio.sleep(int(wait_ms) / 1000)
        return 0.0

    async def charge(self, name: str, tokens: int) -> None:
        """Note what an answered call has used."""
        upstream = self._limited(name)
        if upstream is not None and upstream.tokens_per_minute and tokens > 0:
            await self._ledger.one(CHARGE.call((self._keys.limits(name),), upstream.tokens_per_minute, tokens))

    def _limited(self, name: str) -> Upstream | None:
        upstream = self._upstreams.get(name)
        if upstream is None or not (upstream.requests_per_minute or upstream.tokens_per_minute):
            return None
        return upstream
