"""Two simulated Alertmanager peers, and a forwarder that is restarted: every fact once, in order.

The peers behave like Alertmanager: they flush a group every `group_interval`, one notification at a
time. A notification has the state of the alerts at the flush, even if it arrives late. It is sent
if it differs from the notification log, and again after `repeat_interval`.
"""

import asyncio
import itertools
from dataclasses import dataclass, field
from typing import Any

from hypothesis import Phase, settings, stateful
from hypothesis import strategies as st

from byoc_agents.alerts.dedup import summarize
from byoc_agents.alerts.payload import Status
from byoc_agents.app.cloudevents import parse_rfc3339, rfc3339
from tests.unit.alerts.relay_harness import Harness, Memory, alert

SECOND = 1000
GROUP_INTERVAL, REPEAT_INTERVAL, HEARTBEAT = 300 * SECOND, 3600 * SECOND, 60 * SECOND
SLOW = GROUP_INTERVAL + 30 * SECOND  # a notification is given up after this
LAG = 60 * SECOND  # at most, until the second peer receives a change
NEVER = 1 << 62


@dataclass(frozen=True)
class View:
    """The state of the alert at a peer; times in milliseconds."""

    starts: int
    ends: int | None = None

    @property
    def status(self) -> Status:
        return "firing" if self.ends is None else "resolved"


@dataclass
class Log:
    """Alertmanager's notification log: the last status that was sent."""

    status: Status = "resolved"
    at: int = 0


@dataclass
class Peer:
    """One Alertmanager."""

    log: Log
    next_flush: int
    view: View | None = None
    coming: list[tuple[int, View]] = field(default_factory=list)  # (time of receipt, state)
    sending: View | None = None
    arrives: int = NEVER
    delays: list[int] = field(default_factory=list)  # of the next notifications, in ms

    def next_event(self) -> int:
        flush = NEVER if self.sending else self.next_flush
        return min([flush, self.arrives, *(at for at, _ in self.coming)])

    def receive(self, now: int) -> None:
        while self.coming and self.coming[0][0] <= now:
            self.view = self.coming.pop(0)[1]

    def flush(self, now: int) -> None:
        self.next_flush += GROUP_INTERVAL * (1 + (now - self.next_flush) // GROUP_INTERVAL)
        if self.view is None:
            return
        changed = self.view.status != self.log.status
        if changed or (self.view.ends is None and now >= self.log.at + REPEAT_INTERVAL):
            self.sending = self.view
            retracts = self.view.ends is not None
            delay = self.delays.pop() if self.delays else 0
            self.arrives = now + (min(delay, 30 * SECOND) if retracts else delay)


class Peers(stateful.RuleBasedStateMachine):
    """Prometheus, two peers and one forwarder, in simulated time."""

    @stateful.initialize(gossip=st.booleans(), offset=st.integers(0, 299))
    def begin(self, gossip: bool, offset: int) -> None:
        self.runner = asyncio.Runner()
        self.harness = Harness(Memory())
        now = self.harness.clock.ms
        log = Log()
        self.peers = [
            Peer(log, now + SECOND),
            Peer(log if gossip else Log(), now + SECOND + offset * SECOND),
        ]
        self.heartbeat = now + HEARTBEAT
        self.truth = View(now, now)
        self.beginnings: list[int] = []

    @stateful.precondition(lambda self: self.truth.ends is not None)
    @stateful.rule(same_start=st.booleans(), lag=st.integers(0, LAG))
    def fire(self, same_start: bool, lag: int) -> None:
        """Prometheus reports a beginning, with the same start if it retracts the last end."""
        self.advance(SECOND)
        now = self.harness.clock.ms
        again = same_start and bool(self.beginnings)
        self.beginnings.append(now)
        self.change(View(self.truth.starts if again else now), lag)

    @stateful.precondition(lambda self: self.truth.ends is None)
    @stateful.rule(lag=st.integers(0, LAG))
    def end(self, lag: int) -> None:
        self.advance(SECOND)
        self.change(View(self.truth.starts, self.harness.clock.ms), lag)

    @stateful.precondition(lambda self: self.truth.ends is None)
    @stateful.rule()
    def restart_monitoring(self) -> None:
        """Restart Prometheus and both peers: the alert begins again, with a flush at once."""
        self.advance(SECOND)
        now = self.harness.clock.ms
        self.beginnings.append(now)
        self.truth = View(now)
        for peer in self.peers:
            peer.coming, peer.view, peer.sending, peer.arrives = [], self.truth, None, NEVER
            peer.log.status, peer.next_flush = "resolved", now
        self.advance(SECOND)

    @stateful.rule(delays=st.lists(st.integers(0, SLOW), min_size=1, max_size=3),
                   number=st.integers(0, 1))  # fmt: skip
    def delay(self, delays: list[int], number: int) -> None:
        self.peers[number].delays = delays

    @stateful.precondition(lambda self: self.truth.ends is None)
    @stateful.rule(over=st.sampled_from([1, 290, 310, 700]), lag=st.integers(0, LAG))
    def flap(self, over: int, lag: int) -> None:
        """Report an end, and retract it after `over` seconds."""
        self.end(lag)
        self.advance(over * SECOND)
        self.fire(same_start=True, lag=lag)
        self.advance(GROUP_INTERVAL + 10 * SECOND)

    @stateful.precondition(lambda self: self.truth.ends is not None)
    @stateful.rule(
        number=st.integers(0, 1), slow=st.integers(200 * SECOND, SLOW), same_start=st.booleans()
    )
    def hold_a_copy(self, number: int, slow: int, same_start: bool) -> None:
        """Let one peer report the end while the other's report of the beginning is delayed."""
        self.advance(2 * GROUP_INTERVAL)
        self.delay([slow], number)
        self.fire(same_start, lag=0)
        self.advance(GROUP_INTERVAL + SECOND)
        self.end(lag=0)
        self.advance(GROUP_INTERVAL + SECOND)

    @stateful.rule()
    def restart_forwarder(self) -> None:
        """Restart with a heartbeat, as the daemon does."""
        self.runner.run(self.harness.restart().confirm_reopened())

    @stateful.rule(seconds=st.sampled_from([1, 20, 60, 290, 310, 700, 4000]))
    def wait(self, seconds: int) -> None:
        self.advance(seconds * SECOND)

    def change(self, view: View, lag: int) -> None:
        self.truth = view
        now = self.harness.clock.ms
        for peer, late in zip(self.peers, (0, lag), strict=True):
            last = peer.coming[-1][0] if peer.coming else now
            peer.coming.append((max(last, now + late), view))

    def advance(self, duration: int) -> None:
        target = self.harness.clock.ms + duration
        while (now := min([self.heartbeat, *(p.next_event() for p in self.peers)])) <= target:
            self.harness.clock.ms = max(self.harness.clock.ms, now)
            for peer in self.peers:
                peer.receive(now)
                if peer.arrives <= now:
                    self.deliver(peer)
                elif peer.next_flush <= now and not peer.sending:
                    peer.flush(now)
            if self.heartbeat <= now:
                self.heartbeat += HEARTBEAT
                self.runner.run(self.harness.relay.confirm_reopened())
        self.harness.clock.ms = target

    def deliver(self, peer: Peer) -> None:
        view, peer.sending, peer.arrives = peer.sending, None, NEVER
        assert view
        peer.log.status, peer.log.at = view.status, self.harness.clock.ms
        ends = "0001-01-01T00:00:00Z" if view.ends is None else rfc3339(view.ends)
        sent = alert(status=view.status, startsAt=rfc3339(view.starts), endsAt=ends)
        self.runner.run(self.harness.accept(sent))

    def reported(self) -> list[dict[str, Any]]:
        return [event["data"] for event in self.runner.run(self.harness.events())]

    @stateful.invariant()
    def every_fact_is_reported_once_and_in_order(self) -> None:
        ids = [event["id"] for event in self.runner.run(self.harness.events())]
        assert len(ids) == len(set(ids))
        facts = [data for data in self.reported() if data["notification"] == "transition"]
        cycle = itertools.cycle(["firing", "resolved"])
        assert [data["status"] for data in facts] == list(itertools.islice(cycle, len(facts)))
        starts = [data["starts_at"] for data in facts]
        assert starts == sorted(starts)
        for began, ended in zip(facts[::2], facts[1::2], strict=False):
            assert began["starts_at"] == ended["starts_at"]

    @stateful.invariant()
    def no_old_copy_reopens_anything(self) -> None:
        """Each beginning after an end is a beginning of Prometheus after that end."""
        facts = [data for data in self.reported() if data["notification"] == "transition"]
        assert sum(data["status"] == "firing" for data in facts) <= len(self.beginnings)
        for ended, began in zip(facts[1::2], facts[2::2], strict=False):
            if began["starts_at"] == ended["starts_at"]:
                after = [at for at in self.beginnings if at > parse_rfc3339(ended["ends_at"])]
                assert after, "a beginning was reported that Prometheus did not report"

    @stateful.invariant()
    def a_receiver_has_the_open_episodes_of_the_heartbeat(self) -> None:
        open_now = {
            (data["fingerprint"], data["starts_at"])
            for data in self.reported()[-1:]
            if data["status"] == "firing"
        }
        assert self.harness.relay.open_episodes() == summarize(open_now)

    def teardown(self) -> None:
        """Check that the last reported status is the true one when nothing changes any more."""
        if not hasattr(self, "harness"):
            return
        try:
            self.advance(9 * GROUP_INTERVAL)  # before anything is repeated
            reported = self.reported()
            last = reported[-1]["status"] if reported else "resolved"
            assert last == self.truth.status
            self.advance(REPEAT_INTERVAL)
            if self.truth.status == "firing":
                assert self.reported()[-1]["starts_at"] == rfc3339(self.truth.starts)
        finally:
            self.runner.close()


TestPeers = Peers.TestCase
TestPeers.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking takes minutes
)
