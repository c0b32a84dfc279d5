"""All metrics in one table. Each has the label `daemon`; names follow prometheus.io."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, Metric

from byoc_agents import __version__


class SampleCounter:
    """A counter for every sample: its own thread adds without a lock, and a scrape reads it."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        self._description = name, text
        self._labels = labels
        self._counts = defaultdict[tuple[str, ...], int](int)
        registry.register(self)

    def inc(self, *values: str) -> None:
        """Add 1 to the series with these label values."""
        self._counts[values] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield the family, as a collector of prometheus_client does."""
        family = CounterMetricFamily(*self._description, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count)
        yield family


class Metrics:
    """The process's metrics in one registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.labels: dict[str, tuple[str, ...]] = {}  # of each metric, by its name
        daemon = ("daemon",)
        reason = ("daemon", "reason")

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            self.labels[name] = labels
            return Counter(name, text, labels, registry=self.registry)

        def sample_counter(name: str, text: str, labels: tuple[str, ...]) -> SampleCounter:
            self.labels[name] = labels
            return SampleCounter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = daemon) -> Gauge:
            self.labels[name] = labels
            return Gauge(name, text, labels, registry=self.registry)

        self.spool_events = gauge("byoc_spool_events", "Events that wait to be sent")
        self.spool_bytes = gauge("byoc_spool_bytes", "Bytes the spool holds, dead letters included")
        self.spool_oldest_age_seconds = gauge(
            "byoc_spool_oldest_age_seconds", "Age of the oldest unsent message; 0 = none"
        )
        self.spool_corruptions = counter(
            "byoc_spool_corruptions_total",
            "Spool files that were damaged or lost and set aside",
            daemon,
        )
        self.spool_errors = counter(
            "byoc_spool_errors_total",
            "Durable writes that did not happen: full, unavailable, corrupt, stale",
            reason,
        )
        self.spool_dead_letters = gauge(
            "byoc_spool_dead_letters", "Messages refused for good that are kept"
        )
        self.task_failures = counter(
            "byoc_task_failures_total",
            "Unexpected errors of a task",
            ("daemon", "task"),
        )
        self.send_attempts = counter(
            "byoc_send_attempts_total", "Attempts to send, by how they ended", ("daemon", "result")
        )
        self.messages_sent = counter(
            "byoc_messages_sent_total", "Messages the receiver has", daemon
        )
        self.messages_sent_bytes = counter(
            "byoc_messages_sent_bytes_total", "Bytes of these messages", daemon
        )
        self.dead_letters = counter("byoc_dead_letters_total", "Messages refused for good", reason)
        self.last_send_success = gauge(
            "byoc_last_send_success_timestamp_seconds", "When the receiver last took a message"
        )
        self.ledger_mismatch = gauge(
            "byoc_ledger_mismatch",
            "1 if the ledger was found lost or older than the spool at the start, else 0",
            reason,
        )
        self.egress_refused = counter(
            "byoc_egress_refused_total", "Connections that our own gate refused", reason
        )
        self.seccomp = gauge(
            "byoc_seccomp_enforced", "1 if the kernel enforces the filter of system calls, else 0"
        )
        self.billing_samples = sample_counter(
            "byoc_billing_samples_total",
            "Readings of the target, by source or `none`",
            ("daemon", "source"),
        )
        self.billing_degraded_samples = counter(
            "byoc_billing_degraded_samples_total",
            "Samples at which a better source of usage could not be read or believed",
            daemon,
        )
        self.billing_records = counter(
            "byoc_billing_records_total", "Usage records made, by quality", ("daemon", "quality")
        )
        self.billing_gap_seconds = counter(
            "byoc_billing_gap_seconds_total", "Seconds that were stated as gaps", reason
        )
        self.alerts_received = counter(
            "byoc_alerts_received_total", "Alerts received, by their outcome", ("daemon", "outcome")
        )
        self.webhook_requests = counter(
            "byoc_webhook_requests_total",
            "Webhook requests, by the HTTP status code of the response",
            ("daemon", "code"),
        )
        self.alerts_truncated = counter(
            "byoc_alerts_truncated_total",
            "Alerts that Alertmanager left out of its notifications (max_alerts)",
            daemon,
        )
        self.alerts_budget_bytes = gauge(
            "byoc_alerts_budget_bytes", "Bytes of alerts that may be stored per UTC day"
        )
        self.alerts_budget_used_bytes = gauge(
            "byoc_alerts_budget_used_bytes", "Bytes of alerts that were stored on this UTC day"
        )
        self.alerts_budget_refusals = counter(
            "byoc_alerts_budget_refusals_total",
            "Notifications refused because the day's bytes are used up",
            daemon,
        )
        self.log_lost = counter(
            "byoc_log_lost_lines_total", "Log lines that could not be written", daemon
        )
        self.build_info = gauge("byoc_build_info", "1, with the version", ("daemon", "version"))

    def create_series(self, daemon: str) -> None:
        """Set the series that must exist from the start, so that an alert can see them at 0."""
        self.build_info.labels(daemon, __version__).set(1)
        for family in (self.messages_sent, self.messages_sent_bytes, self.spool_corruptions):
            family.labels(daemon)
