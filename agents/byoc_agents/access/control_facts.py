"""The facts about no grant: the kill switch on and off, another policy, conflicting requests.

A switch or a policy that changes without end must not fill the ledger: a change is stated only
while its budget lasts, and the next line has the number of changes that were not stated. A switch
that is off counts as off only after its line, so without budget it stays on. The line `on` needs no
budget: it follows a line `off`, and nothing that ends access waits for it.
"""

import msgspec

from byoc_agents.access.control_files import find_kind
from byoc_agents.ledger.format import FactLine, clean

BURST_FACTS = 20  # at once; a person who tries the switch needs fewer
REFILL_SECONDS = 300.0  # for each further one: 288 lines a day, about 100 KiB
KILL_SWITCH, POLICY_CHANGED, CONFLICT = "kill_switch", "policy_changed", "conflict"
MAX_CONFLICTS = 64  # contents that are remembered
ON, OFF = "on", "off"


class StatedControls(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the last lines say. It is stored, so that a restart alone states nothing again."""

    switch: str | None = None  # why the kill switch is on; "" = off; None = no line yet
    policy_sha256: str = ""  # "" = no line yet
    conflicts: tuple[str, ...] = ()  # SHA-256 of conflicting requests, the newest last


class FactBudget:
    """How many facts may be written: some at once, and then one per time."""

    def __init__(self, now_ns: int) -> None:
        """`now_ns` is boot time, also of the methods."""
        self._left = float(BURST_FACTS)
        self._at_ns = now_ns

    def take(self, now_ns: int) -> bool:
        """Return whether a fact may be written, and count it."""
        refilled = (now_ns - self._at_ns) / 1e9 / REFILL_SECONDS
        self._left, self._at_ns = min(self._left + refilled, BURST_FACTS), now_ns
        if self._left < 1:
            return False
        self._left -= 1
        return True

    def give_back(self) -> None:
        """Do not count the last one: it was not written."""
        self._left += 1


class ControlFacts:
    """Decides which lines are due. The caller writes them."""

    def __init__(self, stated: StatedControls, now_ns: int) -> None:
        self.stated = stated
        self._switch, self._policy_sha256 = stated.switch, stated.policy_sha256
        self._switch_changes = self._policy_changes = 0  # since the last line
        self._conflicts = 0  # that were not stated
        self._switch_budget, self._policy_budget = FactBudget(now_ns), FactBudget(now_ns)
        self._conflict_budget = FactBudget(now_ns)

    def observe(self, switch: str, policy_sha256: str) -> None:
        """Take the readings: why the switch is on, "" = off; the policy, "" = unreadable."""
        if switch != self._switch:
            self._switch, self._switch_changes = switch, self._switch_changes + 1
        if policy_sha256 not in {"", self._policy_sha256}:
            self._policy_sha256, self._policy_changes = policy_sha256, self._policy_changes + 1

    @property
    def is_stated_off(self) -> bool:
        """Whether the last line about the switch says that it is off."""
        return self.stated.switch == ""

    def begin_off(self, now_ns: int) -> FactLine | None:
        """Return the line that must be durable before the switch counts as off.

        Returns None without budget. `end_off` must follow.
        """
        if not self._switch_budget.take(now_ns):
            return None
        before = "" if self.stated.switch is None else self.stated.switch
        return _line(KILL_SWITCH, OFF, {"state": OFF, "before": before}, self._switch_changes)

    def end_off(self, *, written: bool) -> None:
        """Take whether the line of `begin_off` is on disk."""
        if not written:
            self._switch_budget.give_back()
            return
        self.stated = msgspec.structs.replace(self.stated, switch="")
        self._switch_changes = 0

    def has_due(self) -> bool:
        """Return whether something is read that is not stated, apart from `off`."""
        return bool(self._switch and self._switch != self.stated.switch) or (
            self._policy_sha256 != self.stated.policy_sha256
        )

    def take_due(self, now_ns: int) -> list[FactLine]:
        """Return the lines that are due now; they count as stated."""
        lines = []
        switch, policy_sha256 = self._switch, self._policy_sha256
        if switch and switch != self.stated.switch:
            was_off = not self.stated.switch
            if was_off or self._switch_budget.take(now_ns):
                detail = {"state": ON, "because": find_kind(switch)}
                lines.append(_line(KILL_SWITCH, f"on: {switch}", detail, self._switch_changes))
                self.stated = msgspec.structs.replace(self.stated, switch=switch)
                self._switch_changes = 0
        if policy_sha256 != self.stated.policy_sha256 and self._policy_budget.take(now_ns):
            detail = {"before": self.stated.policy_sha256, "after": policy_sha256}
            lines.append(_line(POLICY_CHANGED, "", detail, self._policy_changes))
            self.stated = msgspec.structs.replace(self.stated, policy_sha256=policy_sha256)
            self._policy_changes = 0
        return lines

    def take_conflict(
        self, request_id: str, known: str, refused: str, now_ns: int
    ) -> FactLine | None:
        """Return the line about a request whose id another one has; None if it was stated.

        `known` and `refused` are the digests of both. A content is stated once. Without budget it
        is counted for the next line.
        """
        if refused in self.stated.conflicts:
            return None
        if not self._conflict_budget.take(now_ns):
            self._conflicts += 1
            return None
        line = _line(CONFLICT, "", {"request": request_id}, self._conflicts + 1)
        conflicts = (*self.stated.conflicts, refused)[-MAX_CONFLICTS:]
        self.stated, self._conflicts = msgspec.structs.replace(self.stated, conflicts=conflicts), 0
        return msgspec.structs.replace(line, sha256={"known": known, "refused": refused})


def _line(fact: str, reason: str, detail: dict[str, str], changes: int) -> FactLine:
    """Return a line. `changes` are those since the last one; all but one were not stated."""
    if changes > 1:
        detail["not_stated"] = str(changes - 1)
    kept = {name: clean(value) for name, value in detail.items() if value}
    return FactLine(fact=fact, subject="", reason=clean(reason), detail=kept)
