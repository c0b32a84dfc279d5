"""Configure and start the OpenTelemetry Collector: logs or metrics in, HTTP out, a queue on disk.

A configuration is JSON, which is YAML as well, so that no value needs quoting.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.bench import go_peers
from lab.real.parts.process import RealProcess, free_port

# The settings of the pages that are not a queue's: nothing but the pipeline uses CPU.
TELEMETRY = {"logs": {"level": "error"}, "metrics": {"level": "none"}}


@dataclass(frozen=True)
class Queue:
    """The sending queue of an exporter, on disk. It is never full, and a batch never expires."""

    fsync: bool = True  # after each write
    batch: int = 100  # records of one request at most; 0 = the records of one accepted request
    flush: str = "50ms"  # a batch waits that long for more records
    consumers: int = 10  # requests at the same time

    def settings(self) -> dict[str, Any]:
        """Return the value of `sending_queue`."""
        batch = {"min_size": self.batch, "max_size": self.batch, "flush_timeout": self.flush}
        return {
            "storage": "file_storage",
            "queue_size": 1_000_000,
            "block_on_overflow": True,
            "num_consumers": self.consumers,
            **({"batch": batch} if self.batch else {}),
        }

    def __str__(self) -> str:
        """Return the settings for a table."""
        size = f"batches of up to {self.batch}" if self.batch else "one alert per request"
        fsync = "on" if self.fsync else "off"
        consumers = f"{self.consumers} consumer{'s' * (self.consumers > 1)}"
        return f"queue on disk, fsync {fsync}, {size}, {consumers}"


@dataclass(frozen=True)
class Exporter:
    """Where the requests go to, and in which form."""

    url: str
    ca_file: str = ""
    encoding: str = "proto"  # the default; "json" can be read without a schema
    compression: str = "none"
    timeout: str = "5s"  # the default
    retry: Mapping[str, str] | None = None  # longest waits between tries; None = the defaults

    def settings(self, signal: str, queue: Queue) -> dict[str, Any]:
        """Return the exporter for `logs` or `metrics`."""
        return {
            f"{signal}_endpoint": self.url,
            "encoding": self.encoding,
            "compression": self.compression,
            "timeout": self.timeout,
            **({"tls": {"ca_file": self.ca_file}} if self.ca_file else {}),
            "retry_on_failure": {**(self.retry or {}), "max_elapsed_time": "0s"},
            "sending_queue": queue.settings(),
        }


def logs(place: Path, exporter: Exporter, queue: Queue) -> RealProcess:
    """Return a Collector, not yet started, that takes OTLP over HTTP at its port."""
    port = free_port()
    receiver = {"otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}}}
    return _collector(place, "logs", receiver, exporter, queue, port)


def metrics(
    place: Path, scrapers: Mapping[str, Any], interval: str, exporter: Exporter, queue: Queue
) -> RealProcess:
    """Return a Collector, not yet started, with the metrics of the host that `scrapers` names.

    Its port is that of a receiver which nothing uses: it shows that the program has started.
    """
    port = free_port()
    receivers = {
        "host_metrics": {"collection_interval": interval, "scrapers": scrapers},
        "otlp": {"protocols": {"http": {"endpoint": f"127.0.0.1:{port}"}}},
    }
    return _collector(place, "metrics", receivers, exporter, queue, port)


def _collector(  # noqa: PLR0917  the parts of one configuration
    place: Path,
    signal: str,
    receivers: Mapping[str, Any],
    exporter: Exporter,
    queue: Queue,
    port: int,
) -> RealProcess:
    storage = {"directory": f"{place}/queue", "create_directory": True, "fsync": queue.fsync}
    pipeline = {"receivers": [*receivers], "exporters": ["otlp_http"]}
    config = {
        "receivers": receivers,
        "exporters": {"otlp_http": exporter.settings(signal, queue)},
        "extensions": {"file_storage": storage},
        "service": {
            "extensions": ["file_storage"],
            "telemetry": TELEMETRY,
            "pipelines": {signal: pipeline},
        },
    }
    file = place / "config.yml"
    file.write_text(json.dumps(config, indent=1))
    return RealProcess(
        name="otelcol",
        command=[str(go_peers.otelcol()), "--config", str(file)],
        port=port,
        ready_path="",
        log=place / "log",
    )
