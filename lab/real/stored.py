"""Read the scraper's objects from a bucket of LocalStack or a directory, and verify them."""

import secrets
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from botocore.config import Config
from botocore.session import get_session

from byoc_agents.audit import Report
from byoc_agents.billing.objects import unseal
from byoc_agents.billing.record import Usage, UsageRecord
from lab.real.parts.localstack import CREDENTIALS, REGION
from lab.real.scraper import PROGRAM, clean_environ

PREFIX = "v1/"
KEYS = {name.upper(): value for name, value in CREDENTIALS.items()}


def directory(path: Path) -> dict[str, str]:
    """Make a directory; return the settings that let the scraper write into it."""
    path.mkdir(parents=True, exist_ok=True)
    return {"BYOC_BILLING_BUCKET": f"file://{path}"}


@dataclass(frozen=True)
class Bucket:
    """A bucket of LocalStack, which may not exist yet."""

    name: str
    url: str
    client: Any

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings with which the scraper writes into it."""
        return {"BYOC_BILLING_BUCKET": self.name, "AWS_ENDPOINT_URL_S3": self.url, **KEYS}

    def create(self) -> None:
        """Create it with versioning, which shows keys that are written twice."""
        place = {"LocationConstraint": REGION}
        self.client.create_bucket(Bucket=self.name, CreateBucketConfiguration=place)
        self.client.put_bucket_versioning(
            Bucket=self.name, VersioningConfiguration={"Status": "Enabled"}
        )

    def writes(self) -> Counter[str]:
        """Return how often each key was written."""
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.name)
        return Counter(one["Key"] for page in pages for one in page.get("Versions", []))

    def objects(self) -> dict[str, bytes]:
        """Return key -> bytes."""
        return {key: self._body(key) for key in sorted(self.writes())}

    def copy_to(self, place: Path) -> None:
        """Write all objects into a directory, as the directory sink lays them out."""
        for key, body in self.objects().items():
            (place / key).parent.mkdir(parents=True, exist_ok=True)
            (place / key).write_bytes(body)

    def verified(self) -> Report:
        """Return the report of `byoc-agents verify s3://bucket/v1/ --json`."""
        settings = {"AWS_ENDPOINT_URL_S3": self.url, "AWS_DEFAULT_REGION": REGION, **KEYS}
        return verified(f"s3://{self.name}/{PREFIX}", settings)

    def _body(self, key: str) -> bytes:
        with self.client.get_object(Bucket=self.name, Key=key)["Body"] as stream:
            return bytes(stream.read())


@contextmanager
def bucket_at(url: str) -> Iterator[Bucket]:
    """Return a new bucket whose client tries once, with long timeouts."""
    config = Config(retries={"total_max_attempts": 1}, proxies={}, read_timeout=60)
    client = get_session().create_client(
        "s3", REGION, endpoint_url=url, config=config, **CREDENTIALS
    )
    try:
        yield Bucket(f"byoc-{secrets.token_hex(6)}", url, client)
    finally:
        client.close()


def verified(target: str, settings: Mapping[str, str] | None = None) -> Report:
    """Return the report of `byoc-agents verify TARGET --json`. Check that the exit code agrees."""
    done = subprocess.run(
        [str(PROGRAM), "verify", target, "--json"],
        capture_output=True,
        env=clean_environ(settings or {}),
        timeout=60,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    assert report.ok == (done.returncode == 0)
    return report


def usages(objects: Mapping[str, bytes]) -> list[Usage]:
    """Return all records, by sequence."""
    decode = msgspec.json.Decoder(UsageRecord).decode
    lines = [line for key, body in objects.items() for line in unseal(key, body)]
    return sorted((decode(line).data for line in lines), key=lambda one: (one.epoch, one.sequence))


def files(place: Path) -> dict[str, bytes]:
    """Return key -> bytes of the directory sink's files."""
    found = [path for path in place.rglob("*.jsonl.*") if not path.name.startswith(".")]
    return {str(path.relative_to(place)): path.read_bytes() for path in found}


def billed(report: Report) -> Decimal:
    """Return all core seconds in a report."""
    return sum((total.cpu_core_seconds for total in report.services), Decimal(0))


def billed_exactly(report: Report, from_usec: int, to_usec: int) -> None:
    """Check that the records equal the counter's rise to the microsecond, and `verify` is OK."""
    assert report.findings == []
    assert report.unrecorded == []
    assert billed(report) == Decimal(to_usec - from_usec).scaleb(-6)
