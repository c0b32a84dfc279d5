"""Run the workload under each counter, and read the counts."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.real.counts.workload import DELIVERIES, MARK, PUTS, SAMPLES
from lab.real.parts import install
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

Counts = dict[str, dict[str, float]]  # piece -> name of the count -> its value for one run

ONE = {
    "sample": SAMPLES, "puts": PUTS, "webhook": 1, "object": 1, "delivery": DELIVERIES,
    "worse_webhook": 1,
}  # fmt: skip
SYNCS = frozenset({"fsync", "fdatasync"})
# How threads and the loop wait for each other depends on the machine: not counted.
WAITING = frozenset({
    "futex", "epoll_wait", "sendto", "recvfrom", "sched_yield", "restart_syscall", "madvise",
    "munmap", "mmap", "brk", "mprotect",
})  # fmt: skip
CALL = re.compile(r"^\d+ +(?:\d+\.\d+ )?(\w+)\(")
TOTAL = re.compile(r"^totals: (\d+)", re.MULTILINE)
TRIGGER = re.compile(r"^desc: Trigger: Client Request: (\w+)", re.MULTILINE)


def counted() -> Counts:
    """Return all counts, each for one run of a piece. Raises PartError."""
    found: Counts = {piece: {} for piece in ONE}
    for counts in (instructions(), calls(), memory()):
        for piece, values in counts.items():
            found[piece] |= {name: value / ONE[piece] for name, value in values.items()}
    return found


def instructions() -> Counts:
    """Count with callgrind between the marks only: the rest runs about five times as fast."""
    place = install.counters()
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "out"
        command = [
            str(place / "usr/bin/valgrind"), "--tool=callgrind", "--instr-atstart=no",
            f"--callgrind-out-file={out}", "-q",
        ]  # fmt: skip
        library = {"VALGRIND_LIB": str(place / "usr/libexec/valgrind")}
        _run(command, "instructions", directory, library)
        texts = [file.read_text() for file in Path(directory).glob("out.*")]
    pairs = [(TRIGGER.search(text), TOTAL.search(text)) for text in texts]
    return {name[1]: {"instructions": int(total[1])} for name, total in pairs if name and total}


def calls() -> Counts:
    """Count system calls and fsyncs with strace, all threads."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "strace"
        program = install.counters() / "usr/bin/strace"
        _run([str(program), "-f", "-qq", "-o", str(log)], "calls", directory, {})
        return _read_calls(log.read_text().splitlines())


def _read_calls(lines: Sequence[str]) -> Counts:
    found: dict[str, Counter[str]] = {}
    piece = "end"
    for line in lines:
        if MARK in line:
            piece = line.partition(f"{MARK}/")[2].partition('"')[0]
        elif piece != "end" and (name := CALL.match(line)) and name[1] not in WAITING:
            found.setdefault(piece, Counter())[name[1]] += 1
    return {
        piece: {"calls": sum(names.values()), "fsyncs": sum(names[name] for name in SYNCS)}
        for piece, names in found.items()
    }


def memory() -> Counts:
    """Return the peak of Python's allocated memory, and the memory still held afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        found: Counts = json.loads(_run([], "memory", directory, {}))
        return found


def _run(prefix: Sequence[str], how: str, directory: str, environ: Mapping[str, str]) -> str:
    work = [sys.executable, "-m", "lab.real.counts.workload", how, directory]
    fixed = {"PYTHONHASHSEED": "0", "PYTHONMALLOC": "pymalloc", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*prefix, *work],
        cwd=ROOT,
        env={**os.environ, **environ, **fixed},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PartError(f"{how}: ended with {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout
