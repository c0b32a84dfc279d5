"""One process with one or more daemons.

It reads the settings, restricts itself to the configured destinations, and runs the daemons until a
signal stops it. The restriction has three parts: the egress gate, which the clients ask before they
connect (`egress/gate.py`); an audit hook, by which Python reports sockets and programs to the gate
(`egress/audit_hook.py`); and a seccomp filter of the kernel, from the time when all daemons listen.
"""

import asyncio
import hashlib
import os
from asyncio.sslproto import SSLProtocol
from collections.abc import AsyncIterator, Callable, Container, Iterator, Mapping, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from pathlib import Path
from typing import Any

import msgspec
import structlog
from prometheus_client import Gauge

from byoc_agents.app import logging as log
from byoc_agents.app import signals
from byoc_agents.app.admin_server import serve
from byoc_agents.app.clock import SystemClock
from byoc_agents.app.daemon import Daemon
from byoc_agents.app.hardening import (
    report_parent,
    report_writable,
    restrict_directories,
    restrict_process,
)
from byoc_agents.app.metrics import Metrics
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.app.runtime import ClickHouseSettings, Runtime
from byoc_agents.app.settings import (
    CoreSettings,
    describe,
    files_of,
    load,
    load_file,
    unknown,
    unreadable_files,
)
from byoc_agents.egress import destinations as table
from byoc_agents.egress.audit_hook import enforce_process
from byoc_agents.egress.aws_settings import identity_files
from byoc_agents.egress.destinations import Destination, DestinationKind
from byoc_agents.egress.gate import Gate, Refusal
from byoc_agents.errors import (
    ConfigError,
    LedgerNewerError,
    SpoolError,
    SpoolNewerError,
    SpoolUnusableError,
)

SECRET_SECONDS = 1.0  # between two checks of the file of a secret
TLS_BUFFER_BYTES = 32 * 1024  # of each TLS connection, in or out; asyncio takes 256 KiB

# Variable prefixes per daemon, to distinguish typos from other daemons' settings.
DAEMONS = {
    "billing-scraper": ("BYOC_BILLING_", "BYOC_LIMITS_", "BYOC_CONTAINER_NAME"),
    "state-exporter": ("BYOC_STATE_",),
    "alert-forwarder": ("BYOC_ALERTS_",),
}
# Run only if they are named: no command adds them to "all daemons".
OPTIONAL_DAEMONS = {"access-broker": ("BYOC_ACCESS_",)}


def _load_nothing() -> None:
    """Do nothing: the default `load` of a daemon without native libraries of its own."""


def _find_no_mistakes(_settings: Any) -> list[str]:
    """Return nothing: the default `find_mistakes` of a daemon without files of its own."""
    return []


class DaemonSpec(msgspec.Struct, frozen=True):
    """One daemon before it is built: its settings, its destinations, and how to open it."""

    name: str
    settings: type[msgspec.Struct]
    destinations: Callable[..., list[Destination]]
    open_daemon: Callable[..., AbstractAsyncContextManager[Daemon]]
    load: Callable[[], None] = _load_nothing  # imports what the audit hook would refuse
    # Returns the mistakes in files that the daemon reads again while it runs. `check-config`
    # reports them. `run` does not, because a mistake there must not prevent a start.
    find_mistakes: Callable[[Any], list[str]] = _find_no_mistakes


class Configuration(msgspec.Struct, frozen=True):
    """All settings of the process, checked."""

    core: CoreSettings
    clickhouse: ClickHouseSettings
    daemons: dict[str, msgspec.Struct]
    destinations: tuple[Destination, ...]
    environ: Mapping[str, str]
    files: tuple[str, ...] = ()  # that hold settings and secrets

    @property
    def directories(self) -> list[Path]:
        """Return the directories of the daemons' spools and ledgers."""
        return [Path(self.core.state_dir) / name for name in self.daemons]

    @property
    def listeners(self) -> list[tuple[str, int]]:
        """Return every (host, port) to listen on."""
        return [
            self.core.listen,
            *(d.listen for d in self.daemons.values() if hasattr(d, "listen")),
        ]

    def describe(self) -> dict[str, Any]:
        """Return variable -> effective value; secrets as ***."""
        structs = [self.core, self.clickhouse, *self.daemons.values()]
        return {name: value for struct in structs for name, value in describe(struct).items()}

    def text(self) -> str:
        """Return the effective settings as `check-config` prints them; secrets as ***."""
        return msgspec.json.format(msgspec.json.encode(self.describe())).decode() + "\n"


def daemon_spec(name: str) -> DaemonSpec:
    """Return a daemon by its name. Imports only this one, to save memory."""
    match name:
        case "billing-scraper":
            from byoc_agents.billing import daemon as billing  # noqa: PLC0415

            return DaemonSpec(name, billing.Settings, billing.destinations, billing.open_daemon)
        case "state-exporter":
            from byoc_agents.state import daemon as state  # noqa: PLC0415

            return DaemonSpec(name, state.Settings, state.destinations, state.open_daemon)
        case "alert-forwarder":
            from byoc_agents.alerts import daemon as alerts  # noqa: PLC0415

            return DaemonSpec(name, alerts.Settings, alerts.destinations, alerts.open_daemon)
        case "access-broker":
            try:
                from byoc_agents.access import daemon as access  # noqa: PLC0415
            except ModuleNotFoundError as error:
                mistake = f"{name}: {error.name} is missing: expected the image access-broker"
                raise ConfigError([mistake]) from error
            return DaemonSpec(
                name,
                access.Settings,
                access.destinations,
                access.open_daemon,
                access.load_libraries,
                access.find_mistakes,
            )
    known = ", ".join([*DAEMONS, *OPTIONAL_DAEMONS])
    raise ConfigError([f"{name}: unknown daemon: expected {known}"])


def configure(
    names: Sequence[str], environ: Mapping[str, str], config_file: str | None = None
) -> Configuration:
    """Read all settings. Raises ConfigError with every mistake."""
    daemons = [daemon_spec(name) for name in dict.fromkeys(names)]
    file = load_file(config_file)
    structs: list[type[msgspec.Struct]] = [CoreSettings, ClickHouseSettings]
    structs += [one.settings for one in daemons]
    # One environment may serve several processes: it may set the daemons of another.
    known = {**DAEMONS, **OPTIONAL_DAEMONS}
    others = sum((prefixes for name, prefixes in known.items() if name not in names), ())
    mistakes = unknown(structs, environ, file, others)
    try:
        core, clickhouse, *own = load(structs, environ, file)
    except ConfigError as error:
        raise ConfigError([*error.mistakes, *mistakes]) from error
    mistakes += unreadable_files(structs, [core, clickhouse, *own], environ)
    destinations: list[Destination] = []
    for one, settings in zip(daemons, own, strict=True):
        try:
            destinations += one.destinations(core, clickhouse, settings, environ)
        except ConfigError as error:
            mistakes += error.mistakes
    destinations = [
        msgspec.structs.replace(d, private=d.private or d.host in core.private_hosts)
        for d in destinations
    ]
    mistakes += table.mistakes(destinations, allow_insecure=core.allow_insecure_endpoints)
    if mistakes:
        raise ConfigError(mistakes)
    by_name = {one.name: settings for one, settings in zip(daemons, own, strict=True)}
    files = files_of(structs, [core, clickhouse, *own], environ, file)
    files += [config_file] if config_file else []
    if any(d.kind in {DestinationKind.S3, DestinationKind.SQS} for d in destinations):
        files += identity_files(environ)
    return Configuration(core, clickhouse, by_name, tuple(destinations), environ, tuple(files))


async def run(configuration: Configuration) -> int:
    """Run until SIGTERM, SIGINT or SIGHUP. Return the exit code. Raises ConfigError."""
    core, stop = configuration.core, asyncio.Event()
    token = ReloadableSecret(
        core.metrics_token, core.metrics_token_file, check_seconds=SECRET_SECONDS
    )
    with _stopping(stop), _translate_state_errors():
        async with (
            _build_daemons(configuration) as (daemons, metrics, confine),
            serve(daemons, metrics, core.listen, token),
        ):
            for daemon in daemons:  # not in `drain`, which needs no address
                await daemon.check()
            confine()  # all listen by now
            grace = core.shutdown_grace_seconds
            await asyncio.gather(*(daemon.run(stop, grace) for daemon in daemons))
    return 0


async def drain(configuration: Configuration) -> int:
    """Send all stored messages and make no new ones. Raises ConfigError.

    Return 0 if no message and no dead letter is left, else 1.
    """
    stop = asyncio.Event()
    with _stopping(stop), _translate_state_errors():
        async with _build_daemons(configuration) as (daemons, _metrics, confine):
            confine()
            left = await asyncio.gather(*(daemon.drain(stop) for daemon in daemons))
    return int(any(left))


def _stopping(stop: asyncio.Event) -> AbstractContextManager[None]:
    """Set `stop` on SIGTERM, SIGINT and SIGHUP."""
    loop = asyncio.get_running_loop()

    def set_stop() -> None:
        loop.call_soon_threadsafe(stop.set)

    return signals.stopping(set_stop)


@contextmanager
def _translate_state_errors() -> Iterator[None]:
    """Raise ConfigError for an error of the spool or the ledger that ends the process."""
    try:
        yield
    except (SpoolNewerError, SpoolUnusableError, LedgerNewerError) as error:
        raise ConfigError([f"BYOC_STATE_DIR: {error}"]) from error
    except SpoolError as error:
        raise ConfigError([f"BYOC_STATE_DIR: {error}: expected a writable directory"]) from error


@asynccontextmanager
async def _build_daemons(
    configuration: Configuration,
) -> AsyncIterator[tuple[list[Daemon], Metrics, Callable[[], None]]]:
    """Open all daemons; yield them, the metrics, and `confine`, to be called once they listen."""
    # asyncio has no parameter for this: docs/adr/0009, and
    # https://github.com/python/cpython/blob/3.11/Lib/asyncio/sslproto.py (SSLProtocol.max_size).
    if not hasattr(SSLProtocol, "max_size"):
        raise RuntimeError("asyncio's SSLProtocol has no max_size: TLS memory would be unbounded")
    SSLProtocol.max_size = TLS_BUFFER_BYTES
    for name in configuration.daemons:
        daemon_spec(name).load()
    core, metrics = configuration.core, Metrics()
    names = "+".join(configuration.daemons)
    log.count_lost(metrics.log_lost.labels(names).inc)
    on_refused: list[Callable[[str, str], None]] = []
    gate = build_gate(configuration, metrics, on_refused)
    confine, addresses = _prepare_seccomp(core.seccomp, metrics.seccomp.labels(names))
    enforce_process(gate, configuration.listeners, addresses)
    runtime = Runtime(
        core=core,
        environ=configuration.environ,
        gate=gate,
        clock=SystemClock(core.organization_id, core.service_id, core.replica),
        metrics=metrics,
        configuration_sha256=hashlib.sha256(configuration.text().encode()).hexdigest(),
    )
    on_refused.append(runtime.record_refusal)  # after the gate, which the ledgers need
    async with AsyncExitStack() as stack:
        daemons = []
        for name, settings in configuration.daemons.items():
            opened = daemon_spec(name).open_daemon(runtime, configuration.clickhouse, settings)
            daemons.append(await stack.enter_async_context(opened))
        yield daemons, metrics, confine


def check_files(configuration: Configuration) -> None:
    """Raise ConfigError for mistakes in files that the daemons read while they run."""
    settings = configuration.daemons.items()
    mistakes = [one for name, own in settings for one in daemon_spec(name).find_mistakes(own)]
    if mistakes:
        raise ConfigError(mistakes)


def _prepare_seccomp(mode: str, enforced: Gauge) -> tuple[Callable[[], None], Container[int]]:
    """Return a function that puts the seccomp filter on the process and reports the outcome.

    The second value has the addresses of the C functions that it calls: the audit hook allows them.
    Must be called before the audit hook is installed, which refuses ctypes. `mode` is BYOC_SECCOMP.
    With `require`, the returned function raises ConfigError if the kernel refuses the filter.
    """
    enforced.set(0)
    logger = structlog.get_logger()
    if mode == "off":
        return lambda: logger.warning("seccomp.off", setting="BYOC_SECCOMP"), ()

    def report_failure(error: Exception) -> None:
        if mode == "require":
            expected = "expected a kernel with seccomp, or BYOC_SECCOMP=on"
            raise ConfigError([f"BYOC_SECCOMP: the filter was refused: {error}: {expected}"])
        logger.error("seccomp.refused", error=str(error))

    try:
        from byoc_agents.egress.seccomp import prepare_filter  # noqa: PLC0415  ctypes, 0.3 MiB

        install_filter = prepare_filter()
    except (ImportError, OSError) as error:  # a Python without ctypes, an unknown architecture
        found = error
        return lambda: report_failure(found), ()

    def confine() -> None:
        try:
            install_filter()
        except OSError as error:
            report_failure(error)
        else:
            enforced.set(1)
            logger.info("seccomp.enforced")

    return confine, install_filter.addresses


def build_gate(
    configuration: Configuration,
    metrics: Metrics,
    on_refused: Sequence[Callable[[str, str], None]],
) -> Gate:
    """Return the gate. It counts and logs each refusal, and calls each function of `on_refused`.

    The caller may append to `on_refused` later: the ledgers are opened after the gate.
    """
    core, logger = configuration.core, structlog.get_logger()
    names = "+".join(configuration.daemons)

    def record(refusal: Refusal, detail: str) -> None:
        metrics.egress_refused.labels(names, refusal).inc()
        logger.error("egress.refused", reason=refusal, detail=detail)
        for notify in on_refused:
            notify(refusal, detail)

    return Gate(
        configuration.destinations,
        allow_insecure=core.allow_insecure_endpoints,
        ca_file=core.ca_file or None,
        proxy=core.https_proxy or None,
        on_refused=record,
    )


def main(names: Sequence[str], config_file: str | None, *, only_drain: bool = False) -> int:
    """Run or drain the named daemons; return the exit code. Raises ConfigError."""
    configuration = configure(names, os.environ, config_file)
    log.configure(configuration.core.log_level)
    restrict_process()
    report_parent(Path(configuration.core.state_dir))
    restrict_directories(configuration.directories)
    report_writable(configuration.files)
    try:
        return asyncio.run(drain(configuration) if only_drain else run(configuration))
    finally:
        log.close()
