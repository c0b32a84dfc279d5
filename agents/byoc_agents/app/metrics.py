"""All metrics in one table. Each has the label `agent`; names follow prometheus.io."""

from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics

from byoc_agents import __version__


class Metrics:
    """The process's metrics in one registry."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        agent = ("agent",)
        why = ("agent", "reason")

        def counter(name: str, text: str, labels: tuple[str, ...]) -> Counter:
            return Counter(name, text, labels, registry=self.registry)

        def gauge(name: str, text: str, labels: tuple[str, ...] = agent) -> Gauge:
            return Gauge(name, text, labels, registry=self.registry)

        self.spool_records = gauge("byoc_spool_records", "Records that wait to be sent")
        self.spool_bytes = gauge("byoc_spool_bytes", "Bytes the spool holds, dead letters included")
        self.spool_oldest_age_seconds = gauge(
            "byoc_spool_oldest_age_seconds", "Age of the oldest unsent message; 0 = none"
        )
        self.spool_resets = counter(
            "byoc_spool_resets_total", "Spool files that were damaged or lost and set aside", agent
        )
        self.spool_errors = counter(
            "byoc_spool_errors_total", "Durable writes that did not happen: full, unavailable", why
        )
        self.spool_dead_letters = gauge(
            "byoc_spool_dead_letters", "Messages refused for good that are kept"
        )
        self.defects = counter(
            "byoc_defects_total", "Unexpected errors that restarted a task", ("agent", "task")
        )
        self.attempts = counter("byoc_attempts_total", "Attempts to send, by how they ended", why)
        self.sent = counter("byoc_sent_total", "Messages the receiver has", agent)
        self.sent_bytes = counter("byoc_sent_bytes_total", "Bytes of these messages", agent)
        self.dead_letters = counter("byoc_dead_letters_total", "Messages refused for good", why)
        self.last_success = gauge(
            "byoc_last_success_timestamp_seconds", "When the receiver last took a message"
        )
        self.egress_refused = counter(
            "byoc_egress_refused_total", "Connections that our own gate refused", why
        )
        self.seccomp = gauge(
            "byoc_seccomp_enforced", "1 if the kernel enforces the filter of system calls, else 0"
        )
        self.billing_samples = counter(
            "byoc_billing_samples_total",
            "Readings of the target, by source or `none`",
            ("agent", "source"),
        )
        self.billing_trouble_samples = counter(
            "byoc_billing_trouble_samples_total",
            "Samples at which a better source of usage could not be read or believed",
            agent,
        )
        self.billing_records = counter(
            "byoc_billing_records_total", "Usage records made, by quality", ("agent", "quality")
        )
        self.billing_gap_seconds = counter(
            "byoc_billing_gap_seconds_total", "Seconds that were stated as gaps", why
        )
        self.alerts = counter(
            "byoc_alerts_total", "Alerts received, by what became of them", ("agent", "fate")
        )
        self.alerts_requests = counter(
            "byoc_alerts_requests_total",
            "Webhook requests, by the status they were answered with",
            ("agent", "status"),
        )
        self.alerts_truncated = counter(
            "byoc_alerts_truncated_total",
            "Alerts that Alertmanager left out of its notifications (max_alerts)",
            agent,
        )
        self.log_lost = counter(
            "byoc_log_lost_lines_total", "Log lines that could not be written", agent
        )
        self.build_info = gauge("byoc_build_info", "1, with the version", ("agent", "version"))

    def build(self, agent: str) -> None:
        """Set the series that must exist from the start, so that an alert can see them at 0."""
        self.build_info.labels(agent, __version__).set(1)
        for family in (self.sent, self.sent_bytes, self.spool_resets):
            family.labels(agent)
