"""For the tests of applications: the whole stack on this machine, or a fake of it.

`Stack` is real: an embedded Valkey, the simulator as the chat API, and a worker on a thread, ready some 0.1 s after
their imports. Use it to see an application at work, through restarts and failures.

    with Stack() as stack:
        stack.script(text="Paris", interval_ms=5)
        assert stack.client().submit(model="m", messages=[…]).result().text == "Paris"

`FakeStack` is the clients on fakeredis, and a worker's part that the test plays itself. No process, no thread, no
socket: for unit tests that say when each piece of an answer comes.

    with FakeStack() as fake:
        job = fake.client().submit(model="m", messages=[…])
        fake.answer(job.id, "Par", "is")
        assert job.result().text == "Paris"

pytest has both as fixtures, with or without pytest-asyncio, where the project's top `conftest.py` says

    pytest_plugins = ["tokentape.testing.plugin"]

    tokentape_stack      a Stack for one test, its server shared by all; TOKENTAPE_REDIS_URL and
                         TOKENTAPE_NAMESPACE lead to it, so that a `Client()` of the application finds it
    tokentape_options    what that Stack is made with; override it to return others, as in {"upstreams": ["claude"]}
    tokentape_fake       a FakeStack for one test
    tokentape_server     the server, for the whole session

`Script` is how the simulator answers, and `EmbeddedServer` the server alone.

The plugin is named there and not found through an entry point: pytest would import it in every run, and would have all
of this package's modules compiled anew for their asserts, whether a project tests with them or not.

Needs `pip install 'tokentape[testing]'`.
"""

from __future__ import annotations

from ..embedded import EmbeddedServer
from ..script import Script
from .fake import FakeStack
from .stack import Stack

__all__ = ["EmbeddedServer", "FakeStack", "Script", "Stack"]
