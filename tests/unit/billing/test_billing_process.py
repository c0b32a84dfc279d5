"""The process tree: its arithmetic on stated trees, and the real /proc with children of ours."""

import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from typing import cast

import psutil
import pytest

from byoc_agents.billing.record import name_incarnation
from byoc_agents.billing.sources.process_tree import (
    ProcessSource,
    ProcessUse,
    lost_usec,
    read_consistent_tree,
)
from byoc_agents.billing.sources.procfs import TICKS_PER_SECOND, Finder, ProcFs
from byoc_agents.billing.sources.reading import TargetAbsentError, TargetUnreadableError

BOOT_ID = "8cf25f06-7a2e-4b5b-aef5-5834d36300d2"
TICK_USEC = 1_000_000 // TICKS_PER_SECOND


class Pid:
    """A fake of psutil.Process as a key: only its identity matters."""

    def __init__(self, pid: int) -> None:
        self.pid = pid


A, B, C, D = (cast("psutil.Process", Pid(pid)) for pid in (1, 2, 3, 4))


def use(parent: psutil.Process | None, own: int, reaped: int = 0) -> ProcessUse:
    return ProcessUse(parent.pid if parent else 0, own, reaped, 0)


TREES = {
    "nothing happened": ({A: use(None, 5)}, {A: use(None, 6)}, 0),
    "waited for": ({A: use(None, 5), B: use(A, 7)}, {A: use(None, 5, 7)}, 0),
    "waited for after more work": ({A: use(None, 5), B: use(A, 7)}, {A: use(None, 5, 9)}, 0),
    "nobody waited": ({A: use(None, 5), B: use(A, 7)}, {A: use(None, 5)}, 7),
    "both waited for at once": (
        {A: use(None, 5), B: use(A, 7), C: use(A, 8)},
        {A: use(None, 5, 15)},
        0,
    ),
    "one of two": ({A: use(None, 5), B: use(A, 7), C: use(A, 8)}, {A: use(None, 5, 8)}, 7),
    "a chain": ({A: use(None, 5), B: use(A, 7), C: use(B, 8)}, {A: use(None, 5, 15)}, 0),
    "a chain, the end handed to init": (
        {A: use(None, 5), B: use(A, 7), C: use(B, 8)},
        {A: use(None, 5, 7)},
        8,
    ),
    "handed to init before": ({A: use(None, 5), C: use(D, 8)}, {A: use(None, 5, 8)}, 8),
    "with what it had waited for": ({A: use(None, 5), B: use(A, 7, 2)}, {A: use(None, 5)}, 9),
    "a parent that is new": ({B: use(A, 7)}, {A: use(None, 5, 100)}, 7),
    "a circle of reused pids": ({B: use(C, 7), C: use(B, 8)}, {A: use(None, 5)}, 15),
}


@pytest.mark.parametrize("name", TREES)
def test_only_what_nobody_waited_for_is_carried_on(name: str) -> None:
    before, now, lost = TREES[name]
    assert lost_usec(before, now) == lost


PARENT = """
    import os, signal, sys, time
    def burn(seconds):
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass
    for line in sys.stdin:
        word = line.strip()
        if word == "burn":
            burn(0.05)
        elif word == "fork":
            reader, writer = os.pipe()
            again, go = os.pipe()
            child = os.fork()
            if child == 0:
                burn(0.05)
                os.write(writer, b"x")
                os.close(go)
                os.read(again, 1)
                os._exit(0)
            os.read(reader, 1)
        elif word == "wait":
            os.close(go)
            os.waitpid(child, 0)
        elif word == "forget":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
            os.close(go)
            try:
                os.waitpid(child, 0)
            except ChildProcessError:
                pass
        print(word, flush=True)
"""


class Parent:
    """A real process that burns CPU, forks and waits on command."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", textwrap.dedent(PARENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def tell(self, word: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == f"{word}\n"

    def source(self) -> ProcessSource:
        return ProcessSource(Finder(ProcFs(), self.process.pid), ProcFs(), BOOT_ID)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def parent() -> Iterator[Parent]:
    started = Parent()
    yield started
    started.end()


async def test_the_cpu_of_a_child_counts_once_whatever_becomes_of_it(parent: Parent) -> None:
    source = parent.source()
    first = (await source.read()).cpu_usec
    parent.tell("fork")
    running = (await source.read()).cpu_usec
    assert running >= first + 50_000 - 2 * TICK_USEC
    parent.tell("wait")
    waited = (await source.read()).cpu_usec
    assert running <= waited < running + 50_000
    parent.tell("fork")
    again = (await source.read()).cpu_usec
    parent.tell("forget")
    forgotten = (await source.read()).cpu_usec
    assert again <= forgotten < again + 50_000
    parent.tell("burn")
    assert (await source.read()).cpu_usec >= forgotten + 50_000 - 2 * TICK_USEC


async def test_a_reading_says_what_it_is(parent: Parent) -> None:
    parent.tell("fork")
    reading = await parent.source().read()
    start_ticks = ProcFs().process(parent.process.pid).start_ticks
    assert reading.source == "process"
    assert reading.incarnation == f"8cf25f06-{parent.process.pid}-{start_ticks}"
    assert name_incarnation(reading) == f"process:{reading.run_name}"
    assert f"-{start_ticks}" not in reading.run_name
    assert not reading.resets_to_zero
    assert (reading.cpu_limit_millicores, reading.memory_limit_bytes) == (None, None)
    assert reading.born_boot_ns is not None
    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - reading.born_boot_ns < 60e9
    alone = psutil.Process(parent.process.pid).memory_info().rss
    assert reading.memory_bytes > alone  # the child's as well
    parent.tell("wait")


async def test_an_ended_process_is_absent(parent: Parent) -> None:
    source = parent.source()
    await source.read()
    parent.process.kill()
    psutil.Process(parent.process.pid).wait()  # reaps it
    with pytest.raises(TargetAbsentError):
        await source.read()
    parent.process.returncode = -9


async def test_after_close_it_starts_again(parent: Parent) -> None:
    source = parent.source()
    first = await source.read()
    source.close()
    assert (await source.read()).incarnation == first.incarnation


def test_a_child_waited_for_between_two_looks_at_the_tree_is_counted_once() -> None:
    """The child's time moves from its own figure to its parent's while the tree is being read."""
    parent = psutil.Process()
    before_the_wait = {parent: ProcessUse(0, 100, 0, 1)}  # read before it; the child after it
    after = {parent: ProcessUse(0, 100, 50, 1)}
    looks = iter([before_the_wait, after, after])
    assert read_consistent_tree(lambda: next(looks)) == after


def test_a_tree_that_never_stands_still_is_a_missed_sample() -> None:
    figures = iter(range(100))
    root = psutil.Process()
    with pytest.raises(TargetUnreadableError, match="too quickly"):
        read_consistent_tree(lambda: {root: ProcessUse(0, 1, next(figures), 1)})
