"""Records the demo as an animated picture, docs/demo.svg: a real run, of which a few moments are kept.

    .venv/bin/python script/record_demo.py docs/demo.svg

The view that draws the streams on a terminal draws each moment here, too; rich turns it into SVG. Only the first
prompts take part, so that the picture stays readable and small. Where nothing moves (a viewer without CSS animation)
the last moment is shown.
"""

from __future__ import annotations

import io
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group, RenderableType
from rich.text import Text

from tokentape import demo
from tokentape.demo_engines import ENGINES
from tokentape.demo_view import View

PROMPTS: Final = 16
WIDTH, HEIGHT = 92, 20
#: Of the moments that were drawn so many are kept, evenly spread, and each is shown for so long.
KEPT: Final = 12
EACH_S: Final = 0.6
LAST_S: Final = 5.0
_LOOK_EVERY_S: Final = 0.1

#: What of rich's SVG is kept of each moment: the letters. Colours and the frame are the same in all.
_LETTERS: Final = "<style>{styles}</style>{backgrounds}{matrix}"


class Recorder(View):
    """A view that keeps what it shows."""

    def __init__(self) -> None:
        self._text = io.StringIO()
        super().__init__(self._text)
        # The width of the picture, and not of a terminal that is not there.
        self._console = Console(file=self._text, width=WIDTH, highlight=False, markup=False, soft_wrap=True)
        self._lines: list[str] = []
        self.moments: list[RenderableType] = []

    def note(self, text: str) -> None:
        super().note(text)
        self._lines.append(self._text.getvalue().splitlines()[-1])

    def ended(self, stream: demo.Stream) -> None:
        """As on a terminal: the row goes away."""

    @contextmanager
    def showing(self, streams: Sequence[demo.Stream]) -> Iterator[None]:
        self._streams = streams
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_EVERY_S):
                self.moments.append(self._moment(self._picture()))

        looking = threading.Thread(target=look)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()

    def report(self, streams: Sequence[demo.Stream], facts: Mapping[str, Any]) -> None:
        self._text.seek(0)
        self._text.truncate()
        super().report(streams, facts)
        last = self._text.getvalue().strip().splitlines()
        self.moments.append(Group(*(Text(line[:WIDTH], no_wrap=True) for line in last[-HEIGHT:])))

    def _moment(self, picture: RenderableType) -> RenderableType:
        return Group(*(Text(line[:WIDTH], style="cyan", no_wrap=True) for line in self._lines), picture)


def record() -> list[RenderableType]:
    """Run the demo. -> what it showed, in order"""
    view = Recorder()
    engine = ENGINES["sim"](demo.clean_environment())
    with tempfile.TemporaryDirectory() as folder:
        prompts = Path(folder) / "prompts.jsonl"
        prompts.write_text("\n".join(demo.PROMPTS.read_text().splitlines()[:PROMPTS]))
        run = demo.Demo(engine, demo.read_prompts(prompts, engine), view, kills=True)
        run.run()
        facts = demo.summary("sim", run, Path("results.jsonl"))
        if facts["exact"] != PROMPTS:
            sys.exit("the demo was not exact")
        view.report(run.streams, facts)
    return view.moments


def picture(moments: Sequence[RenderableType]) -> str:
    """One SVG that shows the moments one after the other."""
    last = len(moments) - 1
    seconds = EACH_S * last + LAST_S
    frames, rules = [], []
    for number, moment in enumerate(moments):
        begins = 100 * EACH_S * number / seconds
        ends = 100 if number == last else 100 * EACH_S * (number + 1) / seconds
        hidden = f"0%,{begins - 0.01:.2f}%{{visibility:hidden}}" if number else ""
        after = "" if number == last else f"{ends:.2f}%,100%{{visibility:hidden}}"
        rules.append(f"@keyframes k{number}{{{hidden}{begins:.2f}%,{ends - 0.01:.2f}%{{visibility:visible}}{after}}}")
        still = "visible" if number == last else "hidden"
        frames.append(
            f'<g style="visibility:{still};animation:k{number} {seconds:.1f}s step-end infinite">'
            f"{letters(moment, f'm{number}')}</g>"
        )
    width, height = round(WIDTH * 12.2) + 24, round(HEIGHT * 24.4) + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">'
        "<title>tokentape demo: answers stream side by side, a worker is killed, all come out exact</title>"
        f"<style>text{{font:20px ui-monospace,Menlo,Consolas,monospace;white-space:pre}}{''.join(rules)}</style>"
        f'<rect width="{width}" height="{height}" rx="8" fill="#1c2128"/>'
        f'<g transform="translate(12,12)" fill="#c5c8c6">{"".join(frames)}</g></svg>\n'
    )


def letters(moment: RenderableType, name: str) -> str:
    """One moment as SVG text, without the frame, the clips and the fonts that rich adds to each."""
    console = Console(record=True, file=io.StringIO(), width=WIDTH, height=HEIGHT, highlight=False)
    console.print(moment)
    svg = console.export_svg(code_format=_LETTERS, unique_id=name)
    svg = re.sub(r' clip-path="[^"]*"', "", svg)
    svg = re.sub(r' textLength="[^"]*"', "", svg)
    return re.sub(r"\n\s*", "", svg)


def main() -> None:
    moments = record()
    step = max(1, (len(moments) - 1) // (KEPT - 1))
    Path(sys.argv[1]).write_text(picture([*moments[:-1:step], moments[-1]]))


if __name__ == "__main__":
    main()
