"""Shorten the writes of a running process, as long as this program runs.

    python -m lab.real.syscalls.short PID LOG pwrite64:short=half -- PATH ...
    python -m lab.real.syscalls.short PID LOG sendto:short=none:when=1+3 --

`half`: half of the bytes, at least one; `none`: no byte. `when=1+3`: the first and every third
after it. Without a path only sockets are concerned. LOG gets one line per altered call.
"""

import signal
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NamedTuple, TextIO

from lab.real.syscalls.ptrace import Call, Tracer


class Rule(NamedTuple):
    """The calls that become short, and how."""

    part: str
    first: int = 1
    step: int = 1

    @classmethod
    def of(cls, text: str) -> tuple[str, "Rule"]:
        """Parse `sendto:short=none:when=1+3`."""
        call, *rest = text.split(":")
        words = dict(word.split("=") for word in rest)
        first, step = words.get("when", "1+1").split("+")
        return call, cls(words["short"], int(first), int(step))

    def due(self, nth: int) -> bool:
        return nth >= self.first and (nth - self.first) % self.step == 0


class Short:
    """Decides which calls become short, and logs them."""

    def __init__(self, rules: Sequence[str], paths: Sequence[str], log: TextIO) -> None:
        self._rules = dict(map(Rule.of, rules))
        self._paths = frozenset(paths)
        self._log = log
        self._seen: Counter[str] = Counter()

    def __call__(self, call: Call) -> int | None:
        rule = self._rules.get(call.name)
        if rule is None or not self._concerned(call.path) or not call.asked_bytes:
            return None
        self._seen[call.name] += 1
        if not rule.due(self._seen[call.name]):
            return None
        count = max(1, call.asked_bytes // 2) if rule.part == "half" else 0
        self._log.write(f"{call.name}({call.path}, {call.asked_bytes}) = {count} (INJECTED)\n")
        self._log.flush()
        return count

    def _concerned(self, path: str) -> bool:
        return path in self._paths if self._paths else path.startswith("socket:")


def main(pid: int, log: Path, rules: Sequence[str], paths: Sequence[str]) -> None:
    """Shorten writes until SIGINT. The kernel detaches the process at the exit."""
    ending = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        if not tracer.busy:  # a register of its may still be ours
            sys.exit()

    with log.open("w") as file:
        short = Short(rules, paths, file)

        def alter(call: Call) -> int | None:
            return None if ending else short(call)

        tracer = Tracer(alter)
        signal.signal(signal.SIGINT, stop)
        tracer.seize(pid)
        while not ending or tracer.busy:
            tracer.serve()


if __name__ == "__main__":
    at = sys.argv.index("--")
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:at], sys.argv[at + 1 :])
