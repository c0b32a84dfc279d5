"""Exports and receipts: trusted and refused files, and the messages of the commands."""

import asyncio
import base64
import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents.airgap.signed_file import SignedFileError, open_file, sign_file
from byoc_agents.app.cli import main
from byoc_agents.errors import LedgerError
from byoc_agents.ledger.format import FactLine, IntentLine, ReceiptLine, decode
from byoc_agents.ledger.verify import verify
from byoc_agents.message import Message
from tests.unit.airgap.airgap_harness import (
    BILLING,
    CUSTOMER,
    STRANGER,
    VENDOR,
    Harness,
    digest,
)


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def lines_of(harness: Harness) -> list[Any]:
    """Return the lines of the ledger of the exports."""
    files = sorted((harness.state_dir / "export" / "ledger").glob("*.jsonl"))
    return [decode(line) for file in files for line in file.read_bytes().splitlines()]


async def test_an_export_holds_the_messages_unchanged_and_removes_nothing(harness: Harness) -> None:
    made = harness.add_objects(3)
    (raw,) = await harness.export()
    file = open_file(raw, "export", CUSTOMER.public_key())
    assert file.messages() == made
    assert file.manifest.daemon == BILLING
    assert harness.waiting() == [message.id for message in made]


async def test_a_receipt_removes_what_it_confirms_and_only_that(harness: Harness) -> None:
    first = harness.add_objects(2)
    (raw,) = await harness.export()
    later = harness.add_objects(1)
    receipt = await harness.deliver(raw)
    assert harness.waiting() == [m.id for m in (*first, *later)]
    assert await harness.confirm(receipt) == 2
    assert harness.waiting() == [later[0].id]
    assert await harness.confirm(receipt) == 0  # again


async def test_the_ledger_has_each_export_and_each_receipt(harness: Harness) -> None:
    made = harness.add_objects(3)
    (raw,) = await harness.export()
    await harness.confirm(await harness.deliver(raw))
    lines = lines_of(harness)
    (intent,) = (line for line in lines if isinstance(line, IntentLine))
    (written,) = (line for line in lines if isinstance(line, ReceiptLine))
    (fact,) = (line for line in lines if isinstance(line, FactLine))
    assert intent.destination == "export:billing-scraper"
    assert [(one.id, one.sha256) for one in intent.messages] == [
        (m.id, digest(m.body)) for m in made
    ]
    assert written.intent == intent.sequence
    file_id = open_file(raw, "export", CUSTOMER.public_key()).id
    assert {one.reference for one in written.outcomes} == {file_id}
    assert (fact.fact, fact.subject, fact.reason) == ("export.receipt", file_id, "stored")
    assert fact.detail == {"daemon": BILLING, "messages": "3"}
    receipt = open_file(harness.receipts[0], "receipt", VENDOR.public_key())
    assert fact.sha256 == {"receipt": receipt.id}
    verdict = verify(harness.state_dir / "export" / "ledger")
    assert verdict.ok, verdict.problems


async def test_without_a_line_in_the_ledger_nothing_is_written(harness: Harness) -> None:
    harness.add_objects(1)
    (harness.state_dir / "export").mkdir()
    (harness.state_dir / "export" / "ledger").touch()  # no directory: nothing can be written there
    with pytest.raises(LedgerError):
        await harness.export()
    assert list(harness.output.iterdir()) == []


async def test_a_receipt_that_the_ledger_cannot_hold_removes_nothing(harness: Harness) -> None:
    harness.add_objects(1)
    (raw,) = await harness.export()
    receipt = await harness.deliver(raw)
    shutil.rmtree(harness.state_dir / "export" / "ledger")
    (harness.state_dir / "export" / "ledger").touch()
    with pytest.raises(LedgerError):
        await harness.confirm(receipt)
    assert len(harness.waiting()) == 1


async def test_a_file_that_cannot_be_written_is_an_error_and_no_export(harness: Harness) -> None:
    harness.add_objects(1)
    harness.output.rmdir()
    with pytest.raises(FileNotFoundError):
        await harness.export()
    (written,) = (line for line in lines_of(harness) if isinstance(line, ReceiptLine))
    assert written.outcomes[0].reason == "internal"
    assert len(harness.waiting()) == 1


async def test_large_spools_become_several_files(harness: Harness) -> None:
    made = harness.add_objects(5)
    size = len(made[0].body)
    files = await harness.export(max_bytes=2 * size + size // 2)
    assert len(files) == 3
    opened = [open_file(raw, "export", CUSTOMER.public_key()).messages() for raw in files]
    assert [m for messages in opened for m in messages] == made
    (one,) = await harness.export(max_bytes=5 * size + 5 * 20)
    assert len(open_file(one, "export", CUSTOMER.public_key()).lines) == 5


@pytest.mark.parametrize("place", [0, 5, 40, -1, -30, "line end"])
async def test_a_changed_byte_is_refused(harness: Harness, place: int | str) -> None:
    harness.add_objects(2)
    (raw,) = await harness.export()
    at = raw.index(b"\n") if isinstance(place, str) else place % len(raw)
    changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
    with pytest.raises(SignedFileError):
        open_file(changed, "export", CUSTOMER.public_key())


async def test_every_changed_byte_is_refused(harness: Harness) -> None:
    harness.add_objects(1)
    (raw,) = await harness.export()
    signature = raw.index(b'"keyid"')  # what follows in the first line is a hint, unprotected
    hint = range(signature, raw.index(b"\n"))
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        try:
            opened = open_file(changed, "export", CUSTOMER.public_key())
        except SignedFileError:
            continue
        assert at in hint or raw[at : at + 1].isalnum()  # spare bits of base64
        assert opened == open_file(raw, "export", CUSTOMER.public_key())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw[:-10], "changed or cut off: its lines do not have the signed SHA-256"),
        (lambda raw: raw + b"{}\n", "changed or cut off"),
        (lambda raw: raw.partition(b"\n")[0], "changed or cut off"),
        (lambda _: b"", "the first line is not a signature"),
        (lambda _: b"PK\x03\x04", "the first line is not a signature"),
    ],
)
async def test_a_damaged_file_is_refused_with_the_reason(
    harness: Harness, change: Any, message: str
) -> None:
    harness.add_objects(2)
    (raw,) = await harness.export()
    with pytest.raises(SignedFileError, match=message):
        open_file(change(raw), "export", CUSTOMER.public_key())


async def test_another_key_and_another_kind_are_refused(harness: Harness) -> None:
    harness.add_objects(1)
    (raw,) = await harness.export()
    receipt = await harness.deliver(raw)
    with pytest.raises(SignedFileError, match="not signed with the given key"):
        open_file(raw, "export", STRANGER.public_key())
    with pytest.raises(SignedFileError, match="as another kind of file: expected receipt"):
        open_file(raw, "receipt", CUSTOMER.public_key())
    with pytest.raises(SignedFileError, match="as another kind of file: expected export"):
        open_file(receipt, "export", VENDOR.public_key())


async def test_the_receipt_of_another_installation_is_refused(
    harness: Harness, tmp_path: Path
) -> None:
    other = Harness(tmp_path / "other", "org-2")
    other.add_objects(1)
    receipt = await other.deliver((await other.export())[0])
    harness.add_objects(1)
    await harness.export()
    with pytest.raises(SignedFileError, match="which was not made in this state directory"):
        await harness.confirm(receipt)
    assert len(harness.waiting()) == 1


ODD_IDS = {
    "empty": "",
    "path": "../made",
    "letters": "x" * 64,
    "capitals": "A" * 64,
    "short": "0" * 63,
    "line": "0" * 64 + "\n",
    "long": "0" * 256,  # longer than a file's name may be
    "longest": "0" * 30_000,  # longer than a path may be
    "nul": "0" * 63 + "\0",
    "digits": "\u0660" * 64,  # Arabic ones
}


@pytest.mark.parametrize("of", ODD_IDS.values(), ids=ODD_IDS)
async def test_a_receipt_for_something_else_than_an_export_is_refused(
    harness: Harness, of: str
) -> None:
    harness.add_objects(1)
    await harness.export()
    _, raw = sign_file("receipt", [], VENDOR, daemon=BILLING, made_at="", of=of)
    with pytest.raises(SignedFileError, match="expected the id of an export, 64 hex") as refused:
        await harness.confirm(raw)
    assert len(str(refused.value)) < 200
    assert str(refused.value).isprintable()


async def test_a_receipt_for_an_unknown_export_is_refused(harness: Harness) -> None:
    harness.add_objects(1)
    await harness.export()
    _, raw = sign_file("receipt", [], VENDOR, daemon=BILLING, made_at="", of="0" * 64)
    with pytest.raises(SignedFileError, match="not made in this state directory"):
        await harness.confirm(raw)


async def test_a_receipt_that_names_another_daemon_is_refused(harness: Harness) -> None:
    harness.add_objects(1)
    (raw,) = await harness.export()
    file_id = open_file(raw, "export", CUSTOMER.public_key()).id
    _, receipt = sign_file("receipt", [], VENDOR, daemon="x", made_at="", of=file_id)
    with pytest.raises(SignedFileError, match="a receipt for 'x': the export was of billing"):
        await harness.confirm(receipt)


async def test_a_message_with_other_bytes_is_not_removed(harness: Harness) -> None:
    (message,) = harness.add_objects(1)
    (raw,) = await harness.export()
    receipt = await harness.deliver(raw)
    with closing(harness.spool()) as store, store.transaction():
        store.remove([message.id])
    harness.add(msgspec.structs.replace(message, body=b"other"))
    assert await harness.confirm(receipt) == 0
    assert harness.waiting() == [message.id]


# The commands.


def keys(directory: Path) -> tuple[Path, Path]:
    """Return the customer's private key and the vendor's public one, as files."""
    private, public = directory / "own.pem", directory / "vendor.pub"
    private.write_bytes(CUSTOMER.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(
        VENDOR.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def test_the_commands_export_and_confirm(
    harness: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    private, public = keys(tmp_path)
    harness.add_objects(2)
    harness.spool("state-exporter").close()
    state = ["--state-dir", str(harness.state_dir)]
    assert main(["export", "--key", str(private), "--output", str(harness.output), *state]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("billing-scraper: 2 messages in ")
    assert said[1] == "state-exporter: nothing waits"
    (file,) = harness.output.iterdir()
    receipt = tmp_path / "receipt.byoc"
    receipt.write_bytes(asyncio.run(harness.deliver(file.read_bytes())))
    foreign = tmp_path / "foreign.byoc"
    foreign.write_bytes(file.read_bytes())
    command = ["import-receipts", "--key", str(public), *state, str(foreign), str(receipt)]
    assert main(command) == 1
    done = capsys.readouterr()
    assert f"{receipt}: 2 messages of billing-scraper confirmed, 2 removed" in done.out
    assert (
        done.err == f"{foreign}: refused: signed, but as another kind of file: expected receipt\n"
    )
    assert harness.waiting() == []
    assert main(["ledger", "verify", str(harness.state_dir)]) == 0
    assert main(["ledger", "show", "--daemon", "export", "--json", str(harness.state_dir)]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    assert {one["destination"] for one in shown if "destination" in one} == {
        "export:billing-scraper"
    }
    assert [one["fact"] for one in shown if "fact" in one] == ["export.receipt"]


def test_the_command_refuses_a_long_id_and_goes_on_with_the_next_receipt(
    harness: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, public = keys(tmp_path)
    harness.add_objects(1)
    (raw,) = asyncio.run(harness.export())
    long, good = tmp_path / "long.byoc", tmp_path / "good.byoc"
    _, content = sign_file("receipt", [], VENDOR, daemon=BILLING, made_at="", of="0" * 256)
    long.write_bytes(content)
    good.write_bytes(asyncio.run(harness.deliver(raw)))
    state = ["--state-dir", str(harness.state_dir)]
    assert main(["import-receipts", "--key", str(public), *state, str(long), str(good)]) == 1
    done = capsys.readouterr()
    expected = "expected the id of an export, 64 hexadecimal digits"
    assert done.err == f"{long}: refused: a receipt for '{'0' * 16}': {expected}\n"
    assert f"{good}: 1 messages of billing-scraper confirmed, 1 removed" in done.out
    assert harness.waiting() == []


def test_control_characters_of_a_file_are_escaped(
    harness: Harness, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that clears the screen, or that adds a line to the output."""
    _, public = keys(tmp_path)
    harness.add_objects(1)
    (raw,) = asyncio.run(harness.export())
    file_id = open_file(raw, "export", CUSTOMER.public_key()).id
    named, unknown = tmp_path / "named.byoc", tmp_path / "unknown.byoc"
    daemon = "\x1b[2Jx\nOK\u202e"
    named.write_bytes(sign_file("receipt", [], VENDOR, daemon=daemon, made_at="", of=file_id)[1])
    line = Message(daemon, "t", b"", 0)  # a line of an export in a receipt: its fields are others
    unknown.write_bytes(
        sign_file("receipt", [line], VENDOR, daemon=BILLING, made_at="", of=file_id)[1]
    )
    state = ["--state-dir", str(harness.state_dir)]
    assert main(["import-receipts", "--key", str(public), *state, str(named), str(unknown)]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    assert r"a receipt for '\x1b[2Jx\nOK\u202e'" in lines[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--key", "{key}", "--output", "{tmp}/none"], "expected an existing directory"),
        (["--key", "{tmp}/none", "--output", "{tmp}"], "No such file"),
        (["--key", "{public}", "--output", "{tmp}"], "--key: "),
        (["--key", "{key}", "--output", "{tmp}", "--state-dir", "{tmp}"], "with spools"),
        (["--key", "{key}", "--output", "{tmp}", "--daemon", "x"], "no spool of x"),
    ],
)
def test_mistakes_in_the_options_are_named(
    harness: Harness,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    private, public = keys(tmp_path)
    harness.add_objects(1)
    names = {"key": private, "public": public, "tmp": tmp_path}
    given = [one.format(**names) for one in arguments]
    state = [] if "--state-dir" in given else ["--state-dir", str(harness.state_dir)]
    assert main(["export", *state, *given]) == 2
    assert message in capsys.readouterr().err


def test_the_files_are_lines_that_other_programs_can_read() -> None:
    _, raw = sign_file("export", [Message("a", "t", b"body", 0)], CUSTOMER, daemon="d", made_at="")
    first, line = map(json.loads, raw.splitlines())
    assert json.loads(base64.b64decode(first["payload"]))["lines"] == 1
    assert base64.b64decode(line["body"]) == b"body"
