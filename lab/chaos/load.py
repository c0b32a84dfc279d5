"""The steady load: alerts that begin and end, and a process that uses CPU in the metered group."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from lab.real.alerts_lab import raise_alert
from lab.real.parts.process import RealProcess

LASTS_TURNS = 6


class Alerts:
    """A thread that raises an alert every `every_seconds` and ends it some turns later."""

    def __init__(self, alertmanager: RealProcess, every_seconds: float) -> None:
        self.raised = 0
        self._alertmanager = alertmanager
        self._every_seconds = every_seconds
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self._every_seconds):
            self.raised += 1
            self._post(f"Chaos{self.raised}")
            if self.raised > LASTS_TURNS:
                self._post(f"Chaos{self.raised - LASTS_TURNS}", ended=True)

    def _post(self, name: str, *, ended: bool = False) -> None:
        try:
            asyncio.run(raise_alert(self._alertmanager, name, ended=ended))
        except (OSError, HTTPException):
            return  # Alertmanager is being restarted: an alert that it never received is not ours

    @contextmanager
    def raising(self) -> Iterator[None]:
        thread = threading.Thread(target=self.run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join(60)
