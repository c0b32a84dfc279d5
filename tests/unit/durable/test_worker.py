"""The spool's thread alone: its groups, and the failures that it survives."""

import asyncio
import errno
import threading
from collections.abc import Sequence
from typing import Any

from byoc_agents.durable.worker import GROUP_WAIT_SECONDS, GroupCommitWorker
from lab.fakes.core import settle


class Counting:
    """A file that does nothing but count, once it may."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.may = threading.Event()

    def serve(self, group: Sequence[str]) -> tuple[list[Any], None]:
        assert self.may.wait(30)
        self.groups.append(len(group))
        return list(group), None

    def close(self) -> None:
        """Nothing was opened."""


async def test_a_sleep_that_fails_does_not_end_the_thread() -> None:
    """Steps of libfaketime do that; the group is then served without the wait."""
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        raise OSError(errno.EINVAL, "Invalid argument")

    served = Counting()
    writer = GroupCommitWorker(
        "file", served, max_group=512, waits_for_group=lambda _: True, sleep=sleep
    )
    writer.start()
    async with asyncio.timeout(30):
        small_group = asyncio.gather(*(writer.ask(f"{number}") for number in range(8)))
        await settle()
        served.may.set()
        assert await small_group == [f"{number}" for number in range(8)]
        await writer.ask("8")
        await writer.stop()
    assert sum(served.groups) == 9
    assert set(waits) == {GROUP_WAIT_SECONDS}
