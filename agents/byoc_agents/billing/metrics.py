"""The billing scraper's reports on its own work: metrics, log events, the latest errors."""

import structlog

from byoc_agents.app.cloudevents import parse_rfc3339
from byoc_agents.app.metrics import Metrics
from byoc_agents.billing.record import Usage
from byoc_agents.billing.sources.target import TargetObservation
from byoc_agents.errors import SpoolError


class BillingMetrics:
    """Counts the samples, records and errors of one target. An error is logged once."""

    def __init__(self, daemon: str, metrics: Metrics, replica: str = "") -> None:
        """`daemon` is a label of the metrics and a field of the log events.

        `replica` is a field of the log events if the daemon meters several.
        """
        self.target_error = ""  # the last one, also of a better source than the one in use
        self.spool_error = ""  # "" after a successful write
        self._daemon = daemon
        self._metrics = metrics
        self._log = structlog.get_logger().bind(daemon=daemon)
        if replica:
            self._log = self._log.bind(replica=replica)

    def count_sample(self, seen: TargetObservation) -> None:
        """Count a sample by its source. Log its error if it is another one than before."""
        source = seen.reading.source if seen.reading else "none"
        self._metrics.billing_samples.inc(self._daemon, source)
        if seen.error and seen.error != self.target_error:
            self._log.warning("billing.source_degraded", error=seen.error)
        self.target_error = seen.error
        if seen.error:
            self._metrics.billing_degraded_samples.labels(self._daemon).inc()

    def log_epoch(self, epoch: int, reason: str) -> None:
        """Log the start of an epoch without a checkpoint."""
        self._log.warning("billing.epoch_started", epoch=epoch, reason=reason)

    def count_record(self, usage: Usage) -> None:
        """Count a stored record. Log a gap or a discontinuity."""
        self._metrics.billing_records.labels(self._daemon, usage.quality).inc()
        start, end = usage.charge_period_start, usage.charge_period_end
        if usage.quality == "gap":
            seconds = (parse_rfc3339(end) - parse_rfc3339(start)) / 1000
            self._metrics.billing_gap_seconds.labels(self._daemon, usage.gap_reason).inc(seconds)
            self._log.warning("billing.gap_recorded", reason=usage.gap_reason, start=start, end=end)
        elif usage.restart_observed or usage.source_changed or usage.clock_step_milliseconds:
            self._log.warning(
                "billing.discontinuity",
                restart_observed=usage.restart_observed,
                source_changed=usage.source_changed,
                clock_step_milliseconds=usage.clock_step_milliseconds,
            )

    def count_spool_error(self, error: SpoolError) -> None:
        """Count an error of the spool. It is logged if the last write was successful."""
        self._metrics.spool_errors.labels(self._daemon, error.reason).inc()
        if not self.spool_error:
            self._log.error("billing.write_failed", error=str(error))
        self.spool_error = str(error)
