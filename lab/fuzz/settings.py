"""Harnesses of settings: an environment of `NAME=value` lines, and a YAML file."""

import tempfile
from pathlib import Path

from byoc_agents.app.run import DAEMONS, configure
from byoc_agents.app.settings import load_file
from byoc_agents.errors import ConfigError
from lab.fuzz.harness import Harness, text

SECRET = "hunter2-is-secret"


def environment(data: bytes) -> None:
    """Configure all daemons: settings, or a ConfigError without secrets."""
    lines = (line.partition("=") for line in text(data).splitlines())
    environ = {name: value for name, _, value in lines if "_FILE" not in name}
    try:
        described = str(configure(list(DAEMONS), environ).describe())
    except ConfigError as error:
        described = str(error.mistakes)
        judge(error)
    reported = [name for name, value in environ.items() if SECRET in name + value]
    assert SECRET not in described or reported != ["BYOC_ALERTS_TOKEN"]


def file(data: bytes) -> None:
    """Load a file: keys with texts, or ConfigError."""
    with tempfile.NamedTemporaryFile(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as made:
        made.write(data)
        made.flush()
        try:
            found = load_file(made.name)
        except ConfigError as error:
            judge(error)
            return
    assert all(type(one) is str for pair in found.items() for one in pair)


def judge(error: ConfigError) -> None:
    """Check that the error names the mistake."""
    assert error.mistakes


GOOD = f"""BYOC_ORGANIZATION_ID=org
BYOC_SERVICE_ID=svc
BYOC_REGION=eu-west-1
BYOC_BILLING_BUCKET=vendor-usage
BYOC_BILLING_TARGET=clickhouse:http://127.0.0.1:8123
BYOC_STATE_QUEUE_URL=https://sqs.eu-west-1.amazonaws.com/1/q.fifo
BYOC_STATE_LIMITS=DISK_LOW=0.1/0.2/30/60
BYOC_CLICKHOUSE_URL=a=http://127.0.0.1:8123
BYOC_ALERTS_URL=https://control.example/v1/events
BYOC_ALERTS_TOKEN={SECRET}
BYOC_ALERTS_SIGNING_SECRET=whsec_a2tra2tra2tra2tra2tra2tra2tra2tra2tra2tra2s=
BYOC_ALERTS_WEBHOOK_TOKEN={SECRET}
BYOC_ALERTS_FINGERPRINT_SECRET=ffffffffffffffffffffffffffffffff
BYOC_ALERTS_NAMESPACE=*
BYOC_ALERTS_LISTEN=[::1]:9095
BYOC_SPOOL_MAX_BYTES=1Gi
AWS_ENDPOINT_URL_S3=http://127.0.0.1:4566
""".encode()
HARNESSES = {
    "environment": Harness(
        environment,
        [GOOD, GOOD.replace(b"org\n", b"o\xff\n")],
        [b"nan", b"inf", b"-1", b"1e999", b"[::1]", b"http://", b"%", b"@", b"#", b":99999", b"\0",
         b"BYOC_", b"clickhouse:", b"pid:", b"cgroup:", b"process:", b",", b"=", b"whsec_", b"://["],
    ),
    "settings-file": Harness(
        file,
        [b"region: eu-west-1\nspool_max_bytes: 1Gi\nledger_keep_bodies: true\n", b"{a: 1, b: [2]}"],
        [b"!!python/object:os.system", b"&a [*a]", b": ", b"\n- ", b"2026-99-99", b"\xff", b"? ",
         b"0x", b"1:60", b"<<: ", b"!!binary ", b"---\n", b"\t", b"!!int ''", b"!!timestamp "],
    ),
}  # fmt: skip
