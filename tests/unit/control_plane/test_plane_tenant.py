"""The customers of the control plane: what each step changes, and a rotation under load."""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from byoc_agents.app.cloudevents import encode
from byoc_agents.app.http_server import Listen, serve
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message, Outcome, Receipt
from byoc_agents.sinks.https import HttpsSink
from byoc_control_plane import cli
from byoc_control_plane.credentials import Keyring, Parsed
from byoc_control_plane.inserter import Inserter
from byoc_control_plane.metrics import PlaneMetrics
from byoc_control_plane.progress import Progress
from byoc_control_plane.receiver import LIMITS, PATH, Receiver
from byoc_control_plane.registry import HEADERS, SENDERS, SIGNING_SECRETS, TOKENS, Registry
from byoc_control_plane.schema import table_statements
from byoc_control_plane.settings import parse_senders
from byoc_control_plane.tenant import TABLES
from lab.control_plane.memory_store import MemoryStore
from lab.control_plane.messages import watch_alert
from lab.fakes.core import START_MS, FakeClock

ROOT = Path(__file__).resolve().parents[3]
PATHS = os.pathsep.join(str(ROOT / name) for name in ("agents", "control-plane"))
ROLE = "arn:aws:iam::111122223333:role/byoc-agents"


def test_the_printed_statements_delete_from_every_table_of_a_customer() -> None:
    created = [one for one in table_statements() if one.lstrip("- ").find("CREATE TABLE") >= 0]
    names = [
        statement.partition("IF NOT EXISTS ")[2].split()[0]
        for statement in created
        if "\n    organization_id " in statement and "ENGINE = Null" not in statement
    ]
    assert sorted(names) == sorted(TABLES)


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def tenant(registry: Path, *arguments: str | Path) -> int:
    """Run one step as a person would."""
    return cli.main(["tenant", *map(str, arguments), "--registry", str(registry)])


def entries(registry: Path, name: str) -> list[str]:
    """Return the lines of a file without its header."""
    header, *lines = (registry / name).read_text().splitlines()
    assert header == HEADERS[name]
    return lines


def add(registry: Path, secrets: Path, organization: str = "org-1") -> None:
    assert tenant(registry, "add", organization, "--service", "svc-1", "--secrets", secrets) == 0


def test_add_makes_credentials_that_only_the_owner_can_read(registry: Path, tmp_path: Path) -> None:
    add(registry, tmp_path / "new")
    token = (tmp_path / "new/token").read_text()
    secret = (tmp_path / "new/signing-secret").read_text()
    assert entries(registry, TOKENS) == [f"org-1:{token}"]
    assert entries(registry, SIGNING_SECRETS) == [f"org-1:{secret}"]
    assert secret.startswith("whsec_")
    assert not (token + secret)[-1].isspace()
    files = [*registry.iterdir(), *(tmp_path / "new").iterdir()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_add_prints_the_vendors_values_with_those_of_the_customer(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "vendor.yaml").write_text(
        "region: eu-central-1\nbillingScraper: {bucket: usage, settings: {BYOC_SECCOMP: require}}\n"
    )
    assert not tenant(
        registry, "add", "org-1", "--service", "svc-1", "--secrets", tmp_path / "new",
        "--values", tmp_path / "vendor.yaml", "--role", ROLE, "--sender", "AROAONE", "--tenants",
    )  # fmt: skip
    assert yaml.safe_load(capsys.readouterr().out) == {
        "region": "eu-central-1",
        "billingScraper": {
            "bucket": "usage",
            "settings": {
                "BYOC_SECCOMP": "require",
                "BYOC_BILLING_PREFIX": "v1/account=111122223333/",
            },
        },
        "organizationId": "org-1",
        "serviceId": "svc-1",
        "aws": {"roleArn": ROLE},
        "alertForwarder": {"secretName": "byoc-alerts"},
    }
    assert entries(registry, SENDERS) == ["org-1:AROAONE"]


def test_the_vendors_texts_stay_texts_for_helm(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Helm takes an unquoted 012345678901 for a number, and PyYAML does not."""
    (tmp_path / "vendor.yaml").write_text("billingScraper: {bucketOwner: '012345678901', cpu: 1}\n")
    assert not tenant(
        registry, "add", "1e3", "--service", "y", "--secrets", tmp_path / "new",
        "--values", tmp_path / "vendor.yaml",
    )  # fmt: skip
    printed = capsys.readouterr().out
    for line in ("bucketOwner: '012345678901'", "organizationId: '1e3'", "serviceId: 'y'"):
        assert line in printed
    assert "cpu: 1\n" in printed


def test_a_second_service_gets_values_and_no_credentials(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(registry, tmp_path / "new")
    before = entries(registry, TOKENS)
    capsys.readouterr()
    again = ("add", "org-1", "--service", "svc-2", "--sender", "AROATWO")
    assert tenant(registry, *again) == tenant(registry, *again) == 0
    assert "serviceId: svc-2" in capsys.readouterr().out
    assert entries(registry, TOKENS) == before
    assert entries(registry, SENDERS) == ["org-1:AROATWO"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "org-3", "--service", "s"], "--secrets: is required"),
        (["add", "org-1", "--service", "s", "--secrets", "x"], "org-1: has credentials"),
        (["add", "org-1", "--service", "s", "--secrets", "two"], "org-1: has credentials"),
        (["add", "org-1", "--service", "s", "--values", "none.yaml"], "--values none.yaml: "),
        (["add", "org-1", "--service", "s", "--tenants"], "--tenants: expected --role"),
        (["add", "org-3", "--service", "s", "--secrets", "new"], "token exists: expected"),
        (["rotate", "org-3", "--secrets", "x"], "org-3: is unknown"),
        (["rotate", "org-1"], "--secrets: is required"),
        (["rotate", "org-1", "--finish"], "org-1: no rotation has begun"),
        (["rotate", "org-1", "--cancel"], "org-1: no rotation has begun"),
        (["rotate", "org-1", "--finish", "--secrets", "x"], "--secrets: expected neither"),
        (["rotate", "org-1", "--secrets", "new"], "token exists: expected"),
        (["add", "org-1", "--service", "s", "--sender", "AROATWO"], "AROATWO sends for org-2"),
        (["add", "org-3", "--service", "s", "--secrets", "x", "--sender", "AROATWO"], "AROATWO"),
        (["remove", "org-1"], "BYOC_PLANE_STORE_URL: is required"),
    ],
)
def test_a_step_that_is_refused_changes_nothing(  # noqa: PLR0917  fixtures
    arguments: list[str],
    message: str,
    registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BYOC_PLANE_STORE_URL", raising=False)
    add(registry, Path("new"))
    assert not tenant(
        registry, "add", "org-2", "--service", "s", "--secrets", "two", "--sender", "AROATWO"
    )
    before = {name: (registry / name).read_bytes() for name in HEADERS}
    capsys.readouterr()
    assert tenant(registry, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert {name: (registry / name).read_bytes() for name in HEADERS} == before
    assert not Path("x").exists()


@pytest.mark.parametrize("organization", ["org 1", "org:1", "org'1", ""])
def test_a_name_that_no_daemon_has_is_refused(registry: Path, organization: str) -> None:
    assert tenant(registry, "add", organization, "--service", "s") == 2
    assert not registry.exists()


def test_a_rotation_keeps_both_until_its_end(registry: Path, tmp_path: Path) -> None:
    add(registry, tmp_path / "a")
    add(registry, tmp_path / "other", "org-2")
    old = (entries(registry, TOKENS), entries(registry, SIGNING_SECRETS))
    assert not tenant(registry, "rotate", "org-1", "--secrets", tmp_path / "b")
    both = (entries(registry, TOKENS), entries(registry, SIGNING_SECRETS))
    new = [(tmp_path / "b" / name).read_text() for name in ("token", "signing-secret")]
    assert both == tuple([*lines, f"org-1:{text}"] for lines, text in zip(old, new, strict=True))
    assert tenant(registry, "rotate", "org-1", "--secrets", tmp_path / "c") == 2
    assert not tenant(registry, "rotate", "org-1", "--cancel")
    assert (entries(registry, TOKENS), entries(registry, SIGNING_SECRETS)) == old
    assert not tenant(registry, "rotate", "org-1", "--secrets", tmp_path / "d")
    assert not tenant(registry, "rotate", "org-1", "--finish")
    newest = (tmp_path / "d/token").read_text()
    assert entries(registry, TOKENS) == [old[0][1], f"org-1:{newest}"]


class Killed(BaseException):
    """The process ends before it writes a file of the registry."""


class KilledRegistry(Registry):
    """A registry whose process is killed before the write of this number."""

    def __init__(self, directory: Path, writes: int) -> None:
        super().__init__(directory)
        self._left = writes

    def write(self, name: str, entries: Sequence[tuple[str, str]]) -> None:
        if not self._left:
            raise Killed
        self._left -= 1
        super().write(name, entries)


def pairs(*directories: Path) -> tuple[list[str], list[str]]:
    """Return the lines that the files must have for these credentials."""
    tokens, signing_secrets = (
        [f"org-1:{(one / name).read_text()}" for one in directories]
        for name in ("token", "signing-secret")
    )
    return tokens, signing_secrets


def accepted(registry: Path) -> tuple[list[str], list[str]]:
    return entries(registry, TOKENS), entries(registry, SIGNING_SECRETS)


@pytest.mark.parametrize("writes", [0, 1])
@pytest.mark.parametrize("again", ["--cancel", "--secrets"])
def test_a_rotation_that_was_killed_leaves_no_secret_in_force(
    again: str, writes: int, registry: Path, tmp_path: Path
) -> None:
    old, lost, new = (tmp_path / name for name in ("old", "lost", "new"))
    add(registry, old)
    with pytest.raises(Killed):
        KilledRegistry(registry, writes).add_credentials("org-1", "lost", "whsec_lost")
    assert len(entries(registry, SIGNING_SECRETS)) == 1 + writes
    assert tenant(registry, "rotate", "org-1", "--finish") == 2
    if again == "--cancel":
        assert tenant(registry, "rotate", "org-1", "--cancel") == (0 if writes else 2)
        assert accepted(registry) == pairs(old)
    assert not lost.exists()
    assert not tenant(registry, "rotate", "org-1", "--secrets", new)
    assert accepted(registry) == pairs(old, new)
    assert not tenant(registry, "rotate", "org-1", "--finish")
    assert accepted(registry) == pairs(new)


@pytest.mark.parametrize("writes", [0, 1])
@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_the_end_of_a_rotation_that_was_killed_is_completed_by_the_same_step(
    end: str, writes: int, registry: Path, tmp_path: Path
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    add(registry, old)
    assert not tenant(registry, "rotate", "org-1", "--secrets", new)
    with pytest.raises(Killed):
        getattr(KilledRegistry(registry, writes), f"{end}_rotation")("org-1")
    if writes:  # the other end is refused
        before = accepted(registry)
        other = {"finish": "--cancel", "cancel": "--finish"}[end]
        assert tenant(registry, "rotate", "org-1", other) == 2
        assert accepted(registry) == before
    assert not tenant(registry, "rotate", "org-1", f"--{end}")
    assert accepted(registry) == pairs({"finish": new, "cancel": old}[end])


def test_an_add_that_was_killed_is_begun_again(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(registry, tmp_path / "other", "org-2")
    with pytest.raises(Killed):
        KilledRegistry(registry, 1).add_credentials("org-1", "lost", "whsec_lost")
    (tmp_path / "new").mkdir()
    (tmp_path / "new/token").write_text("lost")
    capsys.readouterr()
    asked = ("add", "org-1", "--service", "svc-1", "--secrets", tmp_path / "new")
    assert tenant(registry, *asked) == 2
    assert "interrupted are accepted nowhere: delete them" in capsys.readouterr().err
    (tmp_path / "new/token").unlink()
    assert not tenant(registry, *asked)
    tokens, signing_secrets = accepted(registry)
    assert (tokens[1:], signing_secrets[1:]) == pairs(tmp_path / "new")


POINTS = 64  # more than a step has
KILL = """
import os, signal, sys
from byoc_control_plane import cli

CALLS = {"open", "os.rename", "os.mkdir", "os.remove"}

def run(argv, point):
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = [point]
    def kill(event, arguments):
        if event in CALLS and str(arguments[0]).startswith(("registry", "secrets")):
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            left[0] -= 1
    sys.addaudithook(kill)
    os._exit(cli.main(argv))

top, *argv = sys.argv[1:]
killed = 0
for place in sorted(os.listdir(top)):
    os.chdir(os.path.join(top, place))
    killed += run(argv, int(place)) == -signal.SIGKILL
print(killed)
"""


def kill_everywhere(top: Path, *arguments: str) -> int:
    """Run a step in each directory and kill it before its call of that number; count the kills."""
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(top), "tenant", *arguments, "--registry", "registry"],
        env=os.environ | {"PYTHONPATH": PATHS},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("step", ["add", "rotate"])
def test_a_step_that_was_killed_anywhere_is_completed_by_the_same_command(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """If it leaves files that are accepted nowhere, the command says: delete them."""
    places = [tmp_path / f"{point:02}" for point in range(POINTS)]
    asked = {
        "add": ("add", "org-1", "--service", "svc-1", "--sender", "AROAONE"),
        "rotate": ("rotate", "org-1"),
    }[step] + ("--secrets", "secrets")
    for place in places:
        place.mkdir()
        if step == "rotate":
            add(place / "registry", place / "old")
    killed = kill_everywhere(tmp_path, *asked)
    assert 10 < killed < POINTS
    for place in places[:killed]:
        monkeypatch.chdir(place)
        registry = Path("registry")
        capsys.readouterr()
        if code := tenant(registry, *asked):
            assert code == 2
            assert "are accepted nowhere: delete them" in capsys.readouterr().err
            shutil.rmtree("secrets")
            assert not tenant(registry, *asked)
        made = [Path("secrets")] if step == "add" else [Path("old"), Path("secrets")]
        assert accepted(registry) == pairs(*made)
        if step == "add":
            assert entries(registry, SENDERS) == ["org-1:AROAONE"]
            assert "serviceId: svc-1" in capsys.readouterr().out


@pytest.mark.parametrize("step", ["add", "rotate"])
def test_a_step_that_is_done_changes_nothing_when_it_is_run_again(
    step: str, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It differs from a mistake: the directory has the newest credentials."""
    add(registry, tmp_path / "a")
    asked: tuple[str | Path, ...] = ("add", "org-1", "--service", "s", "--secrets", tmp_path / "a")
    if step == "rotate":
        asked = ("rotate", "org-1", "--secrets", tmp_path / "b")
        assert not tenant(registry, *asked)
    before = accepted(registry)
    assert not tenant(registry, *asked)
    assert f"org-1: the credentials in {asked[-1]} are accepted" in capsys.readouterr().err
    assert accepted(registry) == before
    if step == "rotate":
        assert tenant(registry, "rotate", "org-1", "--secrets", tmp_path / "a") == 2
        assert not tenant(registry, "rotate", "org-1", "--finish")
        capsys.readouterr()
        assert tenant(registry, "rotate", "org-1", "--finish") == 2
        assert "no rotation has begun, or it has ended already" in capsys.readouterr().err


@pytest.mark.parametrize("name", HEADERS)
def test_a_file_that_is_not_text_is_named(
    name: str, registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(registry, tmp_path / "a")
    (registry / name).write_bytes(b"\xff\n")
    again = ("add", "org-2", "--service", "s", "--secrets", tmp_path / "b", "--sender", "AROATWO")
    assert tenant(registry, *again) == 2
    assert f"{registry / name}: is not UTF-8: expected" in capsys.readouterr().err
    assert (registry / name).read_bytes() == b"\xff\n"


def test_a_lock_that_is_a_link_to_another_file_is_refused(registry: Path, tmp_path: Path) -> None:
    registry.mkdir()
    other = tmp_path / "other"
    other.write_text("content")
    (registry / "lock").symlink_to(other)
    assert tenant(registry, "add", "org-1", "--service", "s", "--secrets", tmp_path / "new") == 2
    assert other.read_text() == "content"


class ClickHouse(BaseHTTPRequestHandler):
    """Says of each organization that one of its daemons is supervised."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b'{"daemons":"1"}\n'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def clickhouse(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve a store that the command finds by its setting."""
    with ThreadingHTTPServer(("127.0.0.1", 0), ClickHouse) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("BYOC_PLANE_STORE_URL", f"http://127.0.0.1:{server.server_port}/")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("clickhouse")
def test_remove_says_what_it_removed(
    registry: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for organization in ("org-1", "default"):
        add(registry, tmp_path / organization, organization)
    expected = {
        "org-1": "org-1: its lines in the registry are removed (2), so its own credentials are",
        "org-9": "org-9: had no credentials in this registry, so nothing was removed there.\n",
        "default": "default: its lines in the registry are removed (2)",
    }
    for organization, begin in expected.items():
        capsys.readouterr()
        assert not tenant(registry, "remove", organization)
        said = capsys.readouterr().out
        assert said.startswith(begin)
        assert "\n1 of its daemons are not supervised any more.\n" in said
        # `default` is the administrator in ClickHouse.
        assert (f"DROP USER IF EXISTS `{organization}`" in said) is (organization != "default")
        assert "a token without an organization" not in said
    assert accepted(registry) == ([], [])
    capsys.readouterr()
    assert not tenant(registry, "remove", "org-1")  # again
    assert "org-1: had no credentials in this registry" in capsys.readouterr().out
    (registry / TOKENS).write_text(f"{HEADERS[TOKENS]}\na-token-for-all-customers\n")
    assert not tenant(registry, "remove", "org-1")
    assert "The registry has a token without an organization" in capsys.readouterr().out


@pytest.mark.usefixtures("clickhouse")
@pytest.mark.parametrize("step", ["remove", "rotate"])
def test_a_directory_that_is_not_a_registry_is_not_made_one(
    step: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    for directory in (tmp_path / "mistyped", tmp_path / "empty"):
        assert tenant(directory, step, "org-1") == 2
        said = capsys.readouterr()
        assert (said.out, f"{directory}: is not a registry: expected" in said.err) == ("", True)
    assert [*tmp_path.rglob("*")] == [tmp_path / "empty"]


def test_a_store_that_cannot_be_opened_is_found_before_anything_is_removed(
    registry: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("BYOC_PLANE_STORE_URL", f"chdb:{tmp_path / 'chdb'}")
    monkeypatch.setitem(sys.modules, "chdb.session", None)  # as if it were not installed
    add(registry, tmp_path / "a")
    before = accepted(registry)
    assert tenant(registry, "remove", "org-1") == 2
    assert "chdb is not installed" in capsys.readouterr().err
    assert accepted(registry) == before


def test_files_keep_the_mode_that_the_receiver_needs(registry: Path, tmp_path: Path) -> None:
    add(registry, tmp_path / "a")
    (registry / TOKENS).chmod(0o640)
    add(registry, tmp_path / "b", "org-2")
    assert stat.S_IMODE((registry / TOKENS).stat().st_mode) == 0o640


class Harness:
    """A receiver that reads the registry, and a forwarder's sink with the customer's Secret."""

    def __init__(self, registry: Path, mounted: Path) -> None:
        self.registry = registry
        self.mounted = mounted
        self.clock = FakeClock()
        self.store = MemoryStore()
        self.metrics = PlaneMetrics()
        self.inserter = Inserter(self.store, self.metrics)
        self.receiver = Receiver(
            self.inserter,
            Progress(self.store, self.clock, "alerts", "a", redelivery_seconds=60),
            self.metrics,
            self.clock,
            keyring=Keyring(self.file(registry / TOKENS), self.file(registry / SIGNING_SECRETS)),
        )
        self.numbers = count()
        self.outcomes: list[Outcome] = []
        self.answered = asyncio.Event()
        self.sink: HttpsSink

    def file(self, path: Path) -> ReloadableSecret:
        return ReloadableSecret("", str(path))

    async def connect(self, url: str, session: aiohttp.ClientSession) -> None:
        self.sink = HttpsSink(
            url,
            session,
            token=self.file(self.mounted / "token"),
            signing_secret=self.file(self.mounted / "signing-secret"),
            clock=self.clock,
        )

    async def send(self) -> Outcome:
        """Deliver a new alert as the forwarder does."""
        event = watch_alert(START_MS, next(self.numbers))
        (outcome,) = await self.sink.send([Message(event.id, event.type, encode(event), START_MS)])
        self.outcomes.append(outcome)
        self.answered.set()
        return outcome

    async def send_always(self) -> None:
        while True:
            await self.send()

    async def send_more(self, number: int = 20) -> None:
        """Wait until the sender that never stops has had so many more responses."""
        for _ in range(number):
            self.answered.clear()
            await self.answered.wait()

    def mount(self, name: str, source: Path) -> None:
        """Replace a file of the Secret as the kubelet does: at once."""
        partial = self.mounted / f"{name}.new"
        partial.write_text((source / name).read_text())
        partial.replace(self.mounted / name)

    def old_deliveries(self) -> float:
        found = self.metrics.registry.get_sample_value(
            "byoc_plane_old_credentials_total", {"organization_id": "org-1"}
        )
        return found or 0.0


@pytest.fixture
async def harness(registry: Path, tmp_path: Path) -> AsyncIterator[Harness]:
    mounted = tmp_path / "mounted"
    add(registry, mounted)
    made = Harness(registry, mounted)
    task = asyncio.ensure_future(made.inserter.run())
    async with (
        serve(made.receiver.handle, Listen("127.0.0.1", 0), LIMITS) as (host, port),
        aiohttp.ClientSession() as session,
    ):
        await made.connect(f"http://{host}:{port}{PATH}", session)
        yield made
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_rotation_under_load_refuses_no_delivery(harness: Harness, tmp_path: Path) -> None:
    """The forwarder never stops, and reads token and signing secret at different moments."""
    new, registry = tmp_path / "new", harness.registry
    sending = asyncio.ensure_future(harness.send_always())
    await harness.send_more()
    assert not tenant(registry, "rotate", "org-1", "--secrets", new)
    await harness.send_more()
    assert harness.old_deliveries() > 0
    harness.mount("token", new)
    await harness.send_more()
    harness.mount("signing-secret", new)
    await harness.send_more()
    seen = harness.old_deliveries()
    await harness.send_more()
    assert harness.old_deliveries() == seen  # so the rotation may end
    assert not tenant(registry, "rotate", "org-1", "--finish")
    await harness.send_more()
    sending.cancel()
    with suppress(asyncio.CancelledError):
        await sending
    assert [one for one in harness.outcomes if not isinstance(one, Receipt)] == []
    assert len(set(harness.store.ids("byoc_alerts"))) >= len(harness.outcomes) >= 120


async def test_a_rotation_that_ends_too_early_is_refused_and_held(
    harness: Harness, tmp_path: Path
) -> None:
    """The check above would see a refused delivery."""
    assert isinstance(await harness.send(), Receipt)
    assert not tenant(harness.registry, "rotate", "org-1", "--secrets", tmp_path / "new")
    assert not tenant(harness.registry, "rotate", "org-1", "--finish")
    outcome = await harness.send()
    assert isinstance(outcome, SendError)
    assert outcome.reason is Reason.CREDENTIALS


async def test_the_last_customer_can_be_removed_while_the_receiver_runs(
    harness: Harness,
) -> None:
    """A store that does not respond leaves the daemons supervised, and the command says so."""
    assert isinstance(await harness.send(), Receipt)
    removing = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "byoc_control_plane", "tenant", "remove", "org-1"),
        *("--registry", str(harness.registry)),
        env=os.environ | {"BYOC_PLANE_STORE_URL": "http://127.0.0.1:1/", "PYTHONPATH": PATHS},
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await removing.communicate()
    assert (removing.returncode, b"run the command again" in said) == (1, True)
    outcome = await harness.send()
    assert isinstance(outcome, SendError)
    assert outcome.reason is Reason.CREDENTIALS


def test_a_text_with_a_mistake_does_not_replace_the_last() -> None:
    text = ["org-1:AROAONE"]
    senders = Parsed(lambda: text[0], parse_senders)
    expected: dict[str, Any] = {"org-1:AROATWO": "AROATWO", "nobody": "AROATWO", "# none": None}
    for content, sender in expected.items():
        text[0] = content
        assert senders() == ({("org-1", sender)} if sender else frozenset())
