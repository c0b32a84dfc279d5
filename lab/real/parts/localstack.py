"""LocalStack without Docker: a real S3, SQS and STS on a loopback port.

`python -m lab.real.parts.localstack [PORT]` runs one until Ctrl-C.
"""

import signal
import sys
import tempfile
from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port

REGION = "eu-central-1"
CREDENTIALS = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}  # it checks none


def localstack(directory: Path, port: int | None = None) -> RealProcess:
    """Return LocalStack, not started yet. It writes below `directory` and forgets all on a stop."""
    port = port or free_port()
    return RealProcess(
        name="localstack",
        command=[str(install.localstack()), "-m", "localstack.runtime.main"],
        port=port,
        ready_path="/_localstack/health",
        log=directory / "localstack.log",
        environment=_environment(directory, port),
    )


def _environment(directory: Path, port: int) -> dict[str, str]:
    return {
        "GATEWAY_SERVER": "hypercorn",  # the default server listens on every interface
        "GATEWAY_LISTEN": f"127.0.0.1:{port}",
        "LOCALSTACK_HOST": f"127.0.0.1:{port}",
        "DNS_ADDRESS": "0",  # else a DNS server on every interface
        "OVERRIDE_IN_DOCKER": "0",  # else /.dockerenv makes it write to /var/lib and /usr/lib
        "SQS_ENDPOINT_STRATEGY": "path",
        "SERVICES": "s3,sqs,sts",
        "STRICT_SERVICE_LOADING": "1",
        "EAGER_SERVICE_LOADING": "1",  # ready means that the services are, not only the port
        "SKIP_SSL_CERT_DOWNLOAD": "1",
        "DISABLE_EVENTS": "1",
        "FILESYSTEM_ROOT": str(directory),
        "LOCALSTACK_VOLUME_DIR": str(directory),
        "XDG_CACHE_HOME": str(directory),
        "PYTHONPATH": "",
    }


def main(arguments: list[str]) -> int:
    """Run LocalStack in the foreground until Ctrl-C or SIGTERM; print its endpoint."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    port = int(arguments[0]) if arguments else 4566
    with tempfile.TemporaryDirectory() as directory, localstack(Path(directory), port) as running:
        print(
            f"LocalStack: {running.url} (s3, sqs, sts; region {REGION}); Ctrl-C stops it",
            flush=True,
        )
        try:
            signal.pause()
        except KeyboardInterrupt:
            return 0
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
