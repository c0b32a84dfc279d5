"""The metrics' names and labels: dashboards and alerts are built on them."""

from byoc_agents import __version__
from byoc_agents.app.metrics import Metrics

DESIGNED = {  # metric -> its labels other than `daemon`; the table of the design
    "byoc_spool_events": (),
    "byoc_spool_bytes": (),
    "byoc_spool_oldest_age_seconds": (),
    "byoc_messages_sent_total": (),
    "byoc_send_attempts_total": ("result",),
    "byoc_dead_letters_total": ("reason",),
    "byoc_last_send_success_timestamp_seconds": (),
    "byoc_egress_refused_total": ("reason",),
    "byoc_billing_gap_seconds_total": ("reason",),
    "byoc_alerts_received_total": ("outcome",),
    "byoc_webhook_requests_total": ("code",),
    "byoc_alerts_truncated_total": (),
    "byoc_build_info": ("version",),
}
UNITS = ("_seconds", "_bytes", "_events", "_letters", "_info", "_enforced", "_mismatch")


def declared() -> dict[str, tuple[str, ...]]:
    return Metrics().labels


def test_every_designed_metric_is_there_with_its_labels() -> None:
    names = declared()
    assert {name: names.get(name) for name in DESIGNED} == {
        name: ("daemon", *labels) for name, labels in DESIGNED.items()
    }


def test_every_metric_has_our_prefix_the_daemon_and_a_unit() -> None:
    for name, labels in declared().items():
        assert name.startswith("byoc_")
        assert labels[0] == "daemon"
        assert name.endswith(("_total", *UNITS))


def test_what_an_alert_must_see_at_zero_is_there_from_the_start() -> None:
    metrics = Metrics()
    metrics.create_series("daemon")
    value = metrics.registry.get_sample_value
    assert value("byoc_build_info", {"daemon": "daemon", "version": __version__}) == 1
    for name in (
        "byoc_messages_sent_total",
        "byoc_messages_sent_bytes_total",
        "byoc_spool_corruptions_total",
    ):
        assert value(name, {"daemon": "daemon"}) == 0
