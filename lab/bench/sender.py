"""Send alerts as Alertmanager or Prometheus would, over kept connections, with timing."""

import asyncio
import datetime as dt
import json
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from lab.fakes.http import WEBHOOK_TOKEN

SENDERS = 8


def alert(number: int) -> dict[str, Any]:
    """Return an alert of about 4 KB."""
    now = dt.datetime.now(tz=dt.UTC)
    return {
        "status": "firing",
        "labels": {"alertname": f"A{number}", "severity": "critical", "pod": "p" * 60},
        "annotations": {"summary": "x" * 1000, "description": "y" * 2500},
        "startsAt": now.isoformat(),
        "endsAt": (now + dt.timedelta(minutes=5)).isoformat(),
        "fingerprint": f"{number:016x}",
    }


def webhooks(count: int, first: int = 0) -> list[bytes]:
    """Return the bodies that Alertmanager posts to the forwarder, one alert each."""
    group = {"version": "4", "receiver": "byoc", "status": "firing"}
    numbers = range(first, first + count)
    return [json.dumps(group | {"alerts": [alert(number)]}).encode() for number in numbers]


def posts(count: int, first: int = 0) -> list[bytes]:
    """Return the bodies that Prometheus posts to Alertmanager, with the same alerts."""
    wanted = ("labels", "annotations", "startsAt", "endsAt")
    numbers = range(first, first + count)
    return [json.dumps([{k: alert(n)[k] for k in wanted}]).encode() for n in numbers]


def records(count: int, first: int = 0) -> list[bytes]:
    """Return the bodies that a sender of OTLP logs posts, one record with the same alert each."""
    return [json.dumps(_logs(alert(n))).encode() for n in range(first, first + count)]


def _logs(one: dict[str, Any]) -> dict[str, Any]:
    texts = {**one["labels"], **one["annotations"], "fingerprint": one["fingerprint"]}
    attributes = [{"key": k, "value": {"stringValue": text}} for k, text in texts.items()]
    began = dt.datetime.fromisoformat(one["startsAt"])
    record = {
        "timeUnixNano": f"{int(began.timestamp() * 1e9)}",
        "severityText": "ERROR",
        "body": {"stringValue": one["status"]},
        "attributes": attributes,
    }
    return {"resourceLogs": [{"scopeLogs": [{"logRecords": [record]}]}]}


def names(count: int, first: int = 0) -> set[bytes]:
    """Return the names of the alerts that must arrive."""
    return {b"A%d" % number for number in range(first, first + count)}


def send(url: str, bodies: Sequence[bytes], senders: int = SENDERS) -> list[float]:
    """Post all of them, `senders` at a time; return the response time of each in seconds."""
    return asyncio.run(_send(url, bodies, senders))


async def _send(url: str, bodies: Sequence[bytes], senders: int) -> list[float]:
    waits: list[float] = []
    left = iter(bodies)
    await asyncio.gather(*(_sender(url, left, waits) for _ in range(senders)))
    return waits


async def _sender(url: str, bodies: Iterator[bytes], waits: list[float]) -> None:
    place = urlsplit(url)
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    head = f"POST {place.path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json"
    head += f"\r\nAuthorization: Bearer {WEBHOOK_TOKEN}"  # Alertmanager ignores it
    for body in bodies:
        began = time.perf_counter()
        writer.write(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        status = await _status(reader)
        if status != 200:
            raise RuntimeError(f"{url} answered {status}")
        waits.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()


async def _status(reader: asyncio.StreamReader) -> int:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    _, _, after = head.partition("content-length:")
    await reader.readexactly(int(after.split("\r\n")[0] or 0))
    return int(head.split(" ")[1])
