"""Alertmanager and Prometheus from Debian, the real senders of notifications."""

from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port

# Debian's Alertmanager reads /usr/share/prometheus/alertmanager/default.tmpl, wherever it lies
# itself: it gets a mount namespace of its own, with the unpacked files laid over /usr/share.
OVERLAY = 'mount -t overlay overlay -o "lowerdir=$0:/usr/share" /usr/share; exec "$@"'
SEEING_SHARE = ("unshare", "--mount", "sh", "-ec", OVERLAY)


def alertmanager(directory: Path, config: str, port: int | None = None) -> RealProcess:
    """Return Alertmanager with this configuration text, not started yet, without gossip."""
    return _server(
        "prometheus-alertmanager",
        ["--cluster.listen-address=", f"--storage.path={directory}/data"],
        _written(directory, config),
        port or free_port(),
    )


def prometheus(directory: Path, config: str, port: int | None = None) -> RealProcess:
    """Return Prometheus with this configuration text, not started yet.

    An alert active in its first second can arrive a minute late.
    """
    return _server(
        "prometheus",
        ["--rules.alert.resend-delay=2s", f"--storage.tsdb.path={directory}/data"],
        _written(directory, config),
        port or free_port(),
    )


def _written(directory: Path, config: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "config.yml"
    file.write_text(config)
    return file


def _server(program: str, flags: list[str], config: Path, port: int) -> RealProcess:
    place = install.debian()
    share = str(place / "usr/share")
    listen = [f"--config.file={config}", f"--web.listen-address=127.0.0.1:{port}"]
    return RealProcess(
        name=program,
        command=[*SEEING_SHARE, share, str(place / "usr/bin" / program), *listen, *flags],
        port=port,
        ready_path="/-/ready",
        log=config.with_name("log"),
        environment=install.library_path(place),
    )
