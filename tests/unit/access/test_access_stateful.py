"""Any history: orders, failures, crashes and clocks that step both ways.

Store and ledger are real. A crash ends the broker after any of its steps, also within one pass;
whatever it had only in memory is gone.
"""

import asyncio
import tempfile
from contextlib import AsyncExitStack
from itertools import dropwhile
from pathlib import Path
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from byoc_agents.access.clickhouse_admin import USER_PREFIX, user_of
from byoc_agents.access.documents import METRICS
from byoc_agents.access.machine import ENDS, State
from byoc_agents.access.orders import Approve, Deny, Order, Revoke, Submit
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import grant_id, request_envelope, withdrawal_envelope
from tests.unit.access.scripted_broker import Harness, touch

NUMBERS = st.integers(1, 4)
NETWORK = 4  # the request with this number is for the metrics alone, so it has no user
ROLES = {
    "metrics-view": {"endpoints": [METRICS]},
    "system-reader": {"clickhouse_role": "byoc_access_reader"},
}
METHODS = ["create_user", "drop_user", "find_differences", "list_users", "collect", "find_problems"]
POLICIES = ["shorter", "two approvals", "no such role", "restored"]
JUDGED_AGAIN = {State.REJECTED, State.LAPSED}
CALM = 8  # passes of 31 s after which a broker without failures has ended everything


class CrashError(BaseException):
    """The process is gone."""


class History(RuleBasedStateMachine):
    """One harness, one broker after another."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._loop = asyncio.new_event_loop()
        self.harness = Harness(Path(self._folder.name))
        self.scaler = self.harness.use_tailnet()
        self.harness.write_policy(roles=ROLES)
        self.orders = 0
        self.approved: set[str] = set()
        self.requests: dict[int, bytes] = {}
        self.crash_at = 0
        self.users_before: dict[str, set[str]] = {"r0": set(), "r1": set()}
        self._start()

    def _start(self) -> None:
        self._stack = AsyncExitStack()
        self.harness.on_step = self._on_step
        self.harness.connect_tailnet()
        self._loop.run_until_complete(self._stack.enter_async_context(self.harness.running()))

    def _on_step(self, step: str) -> None:
        if step.endswith(".create_user"):
            self._check_created()
            self._check_restored(step.partition(".")[0])
        if step == f"scale.db/tailnet-{METRICS}.1":
            self._check_scaled()
        if step == "fact.collecting" and self.harness.facts()[-1].subject == grant_id(NETWORK):
            assert METRICS not in self.scaler.up  # it is not closed before its endpoint is
        self.users_before = {name: set(users) for name, users in self.harness.users.items()}
        if self.crash_at:
            self.crash_at -= 1
            if not self.crash_at:
                raise CrashError

    def _check_created(self) -> None:
        """Check that a user is created only for a grant that was approved, and after its lines."""
        facts = self.harness.facts()
        for server in self.harness.servers.values():
            for user, account in server.users.items():
                own = [fact for fact in facts if fact.subject == account.grant_id]
                names = [fact.fact for fact in own]
                assert user == user_of(account.grant_id)
                assert account.grant_id in self.approved
                assert account.grant_id != grant_id(NETWORK)
                assert "opening" in names
                assert "certificate" in names
                limit = [int(fact.detail["end_ms"]) for fact in own if fact.fact == "opening"]
                assert account.end_ms in limit

    def _check_scaled(self) -> None:
        """Check that the endpoint comes up only for a grant that was approved, after its line."""
        names = [f.fact for f in self.harness.facts() if f.subject == grant_id(NETWORK)]
        assert grant_id(NETWORK) in self.approved
        assert "opening" in names

    def _check_restored(self, name: str) -> None:
        """Check that a user of an open grant is created again only after a line about it."""
        users = self.harness.servers[name].users
        facts = [fact for fact in self.harness.facts() if fact.detail.get("replica") == name]
        for user in users.keys() - self.users_before[name]:
            grant_id = users[user].grant_id
            if self.harness.grant(grant_id).state is State.OPEN:
                assert "restored" in [fact.fact for fact in facts if fact.subject == grant_id]

    def teardown(self) -> None:
        self.crash_at = 0
        harness = self.harness
        self._repair()
        self._place(Revoke(id="all", by="anna"))
        harness.kill_file.touch()
        for _ in range(CALM):
            self._pass(31)
        waiting = {g.state for g in harness.broker.grants}
        assert waiting <= {State.PENDING, State.APPROVED}
        assert harness.users == {"r0": [], "r1": []}
        assert self.scaler.up == set()
        self._loop.run_until_complete(self._stack.aclose())
        assert harness.ledger_problems() == []
        self._check_one_end()
        self._loop.close()
        self._folder.cleanup()

    def _repair(self) -> None:
        harness = self.harness
        harness.ledger_error = harness.store_error = self.scaler.error = ""
        for server in harness.servers.values():
            server.reachable, server.problems, server.skew_ms = True, [], 0
            server.broken.clear()
        harness.write_policy(roles=ROLES)

    def _check_one_end(self) -> None:
        """Check that no grant has two ends.

        A rejection or a lapse whose line was written and that was not stored before a crash does
        not count: the request is judged again, by the policy and the orders of then.
        """
        ends: dict[str, list[str]] = {}
        for fact in self.harness.facts():
            if fact.fact in {end.value for end in ENDS}:
                ends.setdefault(fact.subject, []).append(fact.fact)
        for kinds in ends.values():
            later = list(dropwhile(lambda kind: kind in JUDGED_AGAIN, kinds))
            assert len(set(later)) <= 1

    def _pass(self, seconds: float = 0) -> None:
        async def run() -> None:
            await self.harness.passes_with_tailnet(seconds)

        try:
            self._loop.run_until_complete(run())
        except CrashError:
            self._crash()

    def _crash(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(self._stack.aclose())
        self.crash_at = 0
        self._start()

    def _place(self, order: Order) -> None:
        self.orders += 1
        self.harness.orders.create()
        self.harness.orders.place(f"{self.orders:06}", order)

    # Orders.

    @rule(number=NUMBERS, again=st.booleans())
    def submit(self, number: int, again: bool) -> None:
        if number not in self.requests or not again:
            now_ms = max(START_MS, self.harness.clock.wall_ns() // 1_000_000)
            engineer = {"id": f"eng-{number}", "name": "A"}
            network: dict[str, Any] = {"role": "metrics-view", "endpoints": [METRICS]}
            self.requests[number] = request_envelope(
                start_ms=now_ms,
                id=grant_id(number),
                engineer=engineer,
                duration_seconds=600,
                **(network if number == NETWORK else {}),
            )
        self._place(Submit(envelope=self.requests[number]))
        self._pass()

    @rule(number=NUMBERS)
    def approve(self, number: int) -> None:
        self.approved.add(grant_id(number))
        self._place(Approve(id=grant_id(number), by="anna"))
        self._pass()

    @rule(number=NUMBERS)
    def deny(self, number: int) -> None:
        self._place(Deny(id=grant_id(number), by="anna", comment="no"))
        self._pass()

    @rule(number=NUMBERS)
    def revoke(self, number: int) -> None:
        self._place(Revoke(id=grant_id(number), by="anna"))
        self._pass()

    @rule(number=NUMBERS)
    def withdraw(self, number: int) -> None:
        self._place(Submit(envelope=withdrawal_envelope(id=grant_id(number))))
        self._pass()

    # Conditions.

    @rule(on=st.booleans())
    def switch(self, on: bool) -> None:
        touch(self.harness.kill_file) if on else self.harness.kill_file.unlink(missing_ok=True)
        self._pass()

    @rule(how=st.sampled_from(["broken", "missing", *POLICIES]))
    def change_policy(self, how: str) -> None:
        harness = self.harness
        if how == "missing":
            harness.policy_file.unlink(missing_ok=True)
        elif how == "broken":
            harness.policy_file.write_text("[")
        else:
            changes: dict[str, dict[str, Any]] = {
                "shorter": {"max_duration": "5m"},
                "two approvals": {"approvals_needed": 2},
                "no such role": {"roles": {"system-reader": ROLES["system-reader"]}},
            }
            harness.write_policy(**({"roles": ROLES} | changes.get(how, {})))
        self._pass()

    @rule(error=st.sampled_from(["", "disk full"]), part=st.sampled_from(["ledger", "store"]))
    def disk(self, error: str, part: str) -> None:
        if part == "ledger":
            self.harness.ledger_error = error
        else:
            self.harness.store_error = error
        self._pass(31)

    @rule(
        name=st.sampled_from(["r0", "r1"]),
        method=st.sampled_from(METHODS),
        how=st.sampled_from(["before", "after", ""]),
    )
    def break_server(self, name: str, method: str, how: str) -> None:
        server = self.harness.servers[name]
        server.broken = {method: how} if how else {}
        self._pass()

    @rule(name=st.sampled_from(["r0", "r1"]))
    def restart_server(self, name: str) -> None:
        self.harness.servers[name].users.clear()
        self._pass(31)

    @rule(name=st.sampled_from(["r0", "r1"]), problems=st.sampled_from([[], ["role_remote"]]))
    def check(self, name: str, problems: list[str]) -> None:
        self.harness.servers[name].problems = problems
        self._pass(31)

    @rule(error=st.sampled_from(["", "status 500"]))
    def break_tailnet(self, error: str) -> None:
        self.scaler.error = error
        self._pass(31)

    # Time, and crashes.

    @rule(seconds=st.sampled_from([0, 1, 31, 299, 601, 4 * 3600]))
    def wait(self, seconds: int) -> None:
        self._pass(seconds)

    @rule(seconds=st.sampled_from([-7200, -61, -30, 30, 61, 7200]))
    def step_clock(self, seconds: int) -> None:
        self.harness.clock.step_wall(seconds)
        self._pass()

    @rule()
    def crash(self) -> None:
        self._crash()
        self._pass()

    @precondition(lambda self: not self.crash_at)
    @rule(steps=st.integers(1, 25))
    def crash_soon(self, steps: int) -> None:
        self.crash_at = steps

    # What holds after every pass.

    @invariant()
    def nothing_is_open_under_a_kill_switch(self) -> None:
        status = self.harness.broker.status()
        if status["kill_switch"] and status["kill_switch"] != "not read yet":
            for name, users in self.harness.users.items():
                assert not users or self._may_lag(name)

    @invariant()
    def nothing_outlives_its_end(self) -> None:
        now_ms = self.harness.clock.wall_ns() // 1_000_000
        for name, server in self.harness.servers.items():
            for account in server.users.values():
                assert account.user.startswith(USER_PREFIX)
                assert now_ms < account.end_ms or self._may_lag(name)

    @invariant()
    def an_endpoint_has_a_pod_only_for_a_grant_that_has_not_ended(self) -> None:
        """Leave a new broker, and one whose patches fail, time until its next response."""
        broker = self.harness.broker
        states = {grant.id: grant.state for grant in broker.grants}
        active = states.get(grant_id(NETWORK)) in {State.OPENING, State.OPEN, State.CLOSING}
        assert broker.tailnet is not None
        known = METRICS in broker.tailnet.pods and not self.scaler.error
        assert METRICS not in self.scaler.up or active or not known

    def _may_lag(self, name: str) -> bool:
        """Return whether a server may still have a user: it fails, or its next attempt is due."""
        server = self.harness.servers[name]
        return bool(server.broken) or any(
            grant.state is State.CLOSING and name in grant.touched
            for grant in self.harness.broker.grants
        )


History.TestCase.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)
TestHistory = History.TestCase
