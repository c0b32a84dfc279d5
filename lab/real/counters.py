"""Read the kernel's CPU counter of a v1 control group, to the microsecond."""

from lab.real.parts.kernel import ControlGroup
from lab.real.scraper import eventually

STILL_LOOKS = 4  # as many readings in a row without a change: nothing runs in it any more


def cpu_usec(group: ControlGroup) -> int:
    """Return the CPU time of all processes that ever ran in the group."""
    return int((group["cpuacct"] / "cpuacct.usage").read_text()) // 1000


def settled(group: ControlGroup) -> int:
    """Wait until the CPU time has stopped rising; return it."""
    seen: list[int] = []

    def still() -> bool:
        seen.append(cpu_usec(group))
        return len(set(seen[-STILL_LOOKS:])) == 1 and len(seen) >= STILL_LOOKS

    eventually(still)
    return seen[-1]
