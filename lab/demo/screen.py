"""Print permanent lines and, on a terminal, a live panel below them."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from byoc_agents.billing.record import Usage
from lab.demo.tables import records_table

PLAIN_WIDTH = 110  # columns where nobody has any
PLAIN_SECONDS = 3.0  # between two status lines that are not a scene
REFRESH_SECONDS = 0.15
LAST_RECORDS = 6


class Screen:
    """The demo's output: lines in a pipe, lines and a panel on a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._moving = self.console.is_terminal and not self.console.is_dumb_terminal
        self._began = time.monotonic()
        self._spinner = Spinner("dots", style="cyan")
        self._title, self._scene, self._scenes = "", 0, 1
        self._sentences, self._records = list[str](), list[Usage]()
        self._printed, self._printed_at = set[str](), 0.0
        self._live = Live(
            get_renderable=self._panel, console=self.console, auto_refresh=False, transient=True
        )

    @asynccontextmanager
    async def moving(self) -> AsyncIterator[None]:
        """Show the panel on a terminal, and remove it at the end."""
        if not self._moving:
            yield
            return
        with self._live:
            refreshing = asyncio.create_task(self._refresh())
            try:
                yield
            finally:
                refreshing.cancel()

    async def _refresh(self) -> None:
        """Draw the panel again. Rich's own thread could draw in the middle of a permanent line."""
        while True:
            self._live.refresh()
            await asyncio.sleep(REFRESH_SECONDS)

    def scene(self, title: str, number: int, scenes: int) -> None:
        """Print the title of a scene."""
        self._title, self._scene, self._scenes = title, number, scenes
        self.console.print(f"\n[bold cyan]{number}/{scenes}  {title}[/]")

    def say(self, text: str) -> None:
        """Print a permanent line."""
        clock = f"{time.monotonic() - self._began:4.0f} s"
        line = Table.grid(padding=(0, 2))
        line.add_row(Text(clock, style="dim"), Text(text))
        self.console.print(line)

    def show(self, sentences: Sequence[str], records: Sequence[Usage]) -> None:
        """Show the state; in a pipe only changes, and at most every few seconds."""
        self._sentences, self._records = list(sentences), list(records)
        if self._moving or time.monotonic() - self._printed_at < PLAIN_SECONDS:
            return
        for sentence in sentences:
            if sentence not in self._printed:
                self.say(f"  {sentence}")
        self._printed, self._printed_at = set(sentences), time.monotonic()

    def print(self, *what: RenderableType) -> None:
        """Print a permanent text."""
        for one in what:
            self.console.print(one)

    def _panel(self) -> RenderableType:
        head = Table.grid(expand=True, padding=(0, 1))
        head.add_column(width=2)
        head.add_column(ratio=1)
        head.add_column(justify="right")
        head.add_column(width=24)
        seconds = f"{time.monotonic() - self._began:.0f} s"
        bar = ProgressBar(self._scenes, self._scene - 0.5, width=24)
        head.add_row(self._spinner, Text(self._title, style="bold"), seconds, bar)
        parts: list[RenderableType] = [head]
        parts += [Text(sentence, style="yellow") for sentence in self._sentences]
        if self._records:
            parts.append(records_table(self._records[-LAST_RECORDS:]))
        return Panel(Group(*parts), border_style="cyan", width=min(PLAIN_WIDTH, self.console.width))


def _console() -> Console:
    columns = None if sys.stdout.isatty() else PLAIN_WIDTH
    return Console(width=columns, highlight=False)
