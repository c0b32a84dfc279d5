"""The customers of the control plane: what each step changes, and a rotation under load."""

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
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
    assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.name != "lock"} == {0o600}


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
        (["add", "org-2", "--service", "s"], "--secrets: is required"),
        (["add", "org-1", "--service", "s", "--secrets", "x"], "org-1: has credentials"),
        (["add", "org-1", "--service", "s", "--values", "none.yaml"], "--values none.yaml: "),
        (["add", "org-1", "--service", "s", "--tenants"], "--tenants: expected --role"),
        (["add", "org-2", "--service", "s", "--secrets", "new"], "token exists: expected"),
        (["rotate", "org-2", "--secrets", "x"], "org-2: is unknown"),
        (["rotate", "org-1"], "--secrets: is required"),
        (["rotate", "org-1", "--finish"], "org-1: no rotation has begun"),
        (["rotate", "org-1", "--cancel"], "org-1: no rotation has begun"),
        (["rotate", "org-1", "--finish", "--secrets", "x"], "--secrets: expected neither"),
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
    before = {name: (registry / name).read_bytes() for name in HEADERS}
    capsys.readouterr()
    assert tenant(registry, *arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.out == ""
    assert {name: (registry / name).read_bytes() for name in HEADERS} == before


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
