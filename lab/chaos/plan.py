"""Plan the faults: a pure function of a seed and a length, so that any seed can be replayed.

Lanes run in parallel; within a lane one fault ends before the next begins. A lane shuffles its
kinds like a deck of cards: each is used once before one is used again.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

LINK = (
    "cut", "slow", "reset", "close", "lost_response", "half_response", "drip", "hang", "garbage",
    "server_error", "throttled", "forbidden", "credentials", "not_found", "mixed",
)  # fmt: skip
LANES: dict[str, tuple[str, ...]] = {
    "s3": (*LINK, "conflict", "redirect"),
    "sqs": LINK,
    "plane": (*LINK, "redirect", "rejected"),
    "webhook": ("cut", "slow", "reset", "lost_response", "half_response", "server_error"),
    "clickhouse": ("cut", "slow", "reset", "hang", "server_error", "credentials", "garbage"),
    "daemons": ("kill", "kill_twice", "pause", "terminate", "kill_all"),
    "disk": ("full",),
    "clock": ("forward", "back"),
    "target": ("burner_killed", "renewed", "gone"),
    "parts": ("clickhouse_killed", "clickhouse_paused", "alertmanager_restarted", "aws_paused"),
}
DAMAGE = (
    "spool_header", "spool_page", "spool_cut", "spool_removed",
    "journal_cut", "journal_flipped", "journal_removed",
)  # fmt: skip
LONG_ONLY = ("aws_killed",)  # LocalStack takes ten seconds and more to start
LONGEST_SECONDS = {"clock": 6.0, "disk": 5.0}
LONG_SECONDS = 60.0  # a run that is at least so long has longer faults, and restarts LocalStack
OUTAGE_SECONDS, OUTAGE_REST_SECONDS = 16.0, 6.0  # of other programs in a long run: to be noticed
QUIET_LANES = ("disk", "clock", "target")  # these pause longer


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: its start, lane, kind and duration, and a random number for its details."""

    at_seconds: float
    lane: str
    kind: str
    seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.at_seconds:7.1f} s  {self.lane:<10} {self.kind:<22} for {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """The faults of a run. `apart`: each daemon in its own process."""

    seed: int
    seconds: float
    apart: bool
    disk: str  # "ext4" or "tmpfs"
    damage: bool  # spool files are damaged as well: then their messages may be lost, and are named
    tight: bool  # the spools are so small that a short outage fills them
    faults: tuple[Fault, ...]

    def __str__(self) -> str:
        head = (
            f"seed {self.seed}: {self.seconds:.0f} s, {len(self.faults)} faults, "
            f"{'three processes' if self.apart else 'one process'}, state on {self.disk}, "
            f"{'tight' if self.tight else 'wide'} spools, "
            f"{'damaged too' if self.damage else 'left whole'}"
        )
        return "\n".join([head, *map(str, self.faults)])


def planned(seed: int, seconds: float) -> Plan:
    """Return the plan of a seed."""
    rng = random.Random(seed)
    disk = rng.choice(("ext4", "ext4", "tmpfs"))
    damage = rng.random() < 1 / 3
    lanes = dict(LANES)
    if disk == "ext4":
        lanes["disk"] += ("read_only",)
    if damage:
        lanes["daemons"] += DAMAGE
    if seconds >= LONG_SECONDS:
        lanes["parts"] += LONG_ONLY
    faults = [fault for lane, kinds in lanes.items() for fault in _lane(rng, lane, kinds, seconds)]
    faults.sort(key=lambda fault: fault.at_seconds)
    apart, tight = rng.random() < 2 / 3, rng.random() < 1 / 3
    return Plan(seed, seconds, apart, disk, damage, tight, tuple(faults))


def _lane(rng: random.Random, lane: str, kinds: Sequence[str], seconds: float) -> list[Fault]:
    longest = LONGEST_SECONDS.get(lane, 8.0 if seconds >= LONG_SECONDS else 4.0)
    rest = longest * (2 if lane in QUIET_LANES else 1)
    if lane == "parts" and seconds >= LONG_SECONDS:
        longest, rest = OUTAGE_SECONDS, OUTAGE_REST_SECONDS
    found: list[Fault] = []
    deck: list[str] = []
    at = rng.uniform(0, rest)
    while True:
        deck = deck or rng.sample(kinds, len(kinds))
        lasts = rng.uniform(1.0, longest)
        if at + lasts > seconds:
            return found
        found.append(Fault(round(at, 1), lane, deck.pop(), round(lasts, 1), rng.randrange(2**32)))
        at += lasts + rng.uniform(0.5, rest)
