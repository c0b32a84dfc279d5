"""Go's packages for transparency logs read our checkpoints and proofs, and refuse changed ones."""

import asyncio
import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from byoc_agents.report import main
from lab.real.parts import install
from tests.unit.ledger.ledger_fakes import QuickDisk, files, ledger, message, send

pytestmark = pytest.mark.real
SENDS = 20
Given = dict[str, Any]


class Oracle:
    """The Go program."""

    def __init__(self, program: Path) -> None:
        self._program = program

    def error(self, given: Given) -> str:
        """Return why it refuses, or an empty string."""
        ran = subprocess.run(
            [self._program],
            input=json.dumps(given),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (ran.stdout == "ok\n") == (ran.returncode == 0), ran.stderr
        return "" if ran.returncode == 0 else ran.stdout


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(install.ledger_oracle())


class Customer:
    """A ledger, and a key that only the customer has."""

    def __init__(self, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.directory = place / "billing-scraper" / "ledger"
        self._key = place / "key.pem"
        key = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
        self._key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self._capsys = capsys

    def deliver(self, sends: int = SENDS, *, first: int = 0, max_bytes: int = 1 << 20) -> None:
        async def run() -> None:
            async with ledger(self.directory, QuickDisk(), max_bytes=max_bytes) as made:
                for number in range(first, first + sends):
                    await send(made, message(number), message(-number))

        asyncio.run(run())

    def run(self, *arguments: object) -> str:
        self._capsys.readouterr()
        given = [*map(str, arguments), str(self.directory), "--key", str(self._key)]
        assert main(given) == 0
        return self._capsys.readouterr().out

    def checkpoint(self) -> str:
        return self.run("checkpoint").removesuffix("\n")

    def verifier(self) -> str:
        return self.run("checkpoint", "--public-key").strip()

    def lines(self) -> list[str]:
        found = [path.read_text().splitlines() for path in files(self.directory)]
        return [line for part in found for line in part]


@pytest.fixture
def customer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Customer:
    made = Customer(tmp_path, capsys)
    made.deliver()
    return made


def changed(text: str, old: str, new: str) -> str:
    assert old in text
    return text.replace(old, new, 1)


def another(encoded: str) -> str:
    """Return the base64 of other bytes of the same length."""
    raw = base64.b64decode(encoded)
    return base64.b64encode(bytes([raw[0] ^ 1]) + raw[1:]).decode()


def test_a_checkpoint_is_the_root_of_the_lines(oracle: Oracle, customer: Customer) -> None:
    note, lines = customer.checkpoint(), customer.lines()
    given: Given = {"key": customer.verifier(), "note": note, "lines": lines}
    assert oracle.error(given) == ""
    size, root = note.splitlines()[1:3]
    signature = note.splitlines()[-1].split()[-1]
    notes = [
        changed(note, f"\n{size}\n", f"\n{int(size) + 1}\n"),
        changed(note, root, another(root)),
        changed(note, signature, another(signature)),
        changed(note, "billing-scraper", "state-exporter"),
        note.split("\n\n")[0] + "\n",
    ]
    histories = [lines[:-1], lines[1:], [*lines[:5], lines[5] + " ", *lines[6:]]]
    histories.append([lines[1], lines[0], *lines[2:]])
    assert [n for n in notes if not oracle.error(given | {"note": n})] == []
    assert [h for h in histories if not oracle.error(given | {"lines": h})] == []


def test_every_line_is_proven_and_no_other(oracle: Oracle, customer: Customer) -> None:
    lines = customer.lines()
    key = customer.verifier()
    for number in (0, 1, len(lines) // 2, len(lines) - 1):
        proof = customer.run("prove", "--line", number)
        given = {"key": key, "proof": proof, "line": lines[number]}
        assert oracle.error(given) == ""
        assert oracle.error(given | {"line": lines[number - 1]})
        step = proof.splitlines()[2]
        assert oracle.error(given | {"proof": changed(proof, step, another(step))})
        other = changed(proof, f"index {number}\n", f"index {number + 1}\n")
        assert oracle.error(given | {"proof": other})


def test_a_later_checkpoint_continues_an_earlier_one(oracle: Oracle, customer: Customer) -> None:
    old = customer.checkpoint()
    size = old.splitlines()[1]
    customer.deliver()
    proof = customer.run("prove", "--from", size)
    given = {"key": customer.verifier(), "old": old, "consistency": proof}
    assert oracle.error(given) == ""
    step = proof.splitlines()[1]
    assert oracle.error(given | {"consistency": changed(proof, step, another(step))})
    (path,) = files(customer.directory)
    path.unlink()  # another history: the old checkpoint is not a part of it
    customer.deliver(2 * SENDS, first=1000)
    forged = customer.run("prove", "--from", size)
    assert oracle.error(given | {"consistency": forged})


def test_proofs_after_a_rotation_need_no_removed_line(oracle: Oracle, customer: Customer) -> None:
    customer.deliver(400, max_bytes=64 * 1024)
    assert files(customer.directory)[0].name != "ledger-000001.jsonl"
    kept = customer.lines()
    key, first = customer.verifier(), json.loads(kept[0])["sequence"]
    for position in (0, 1, len(kept) - 1):
        proof = customer.run("prove", "--line", first + position)
        assert oracle.error({"key": key, "proof": proof, "line": kept[position]}) == ""
    old = customer.checkpoint()
    customer.deliver(3, max_bytes=64 * 1024)
    proof = customer.run("prove", "--from", old.splitlines()[1])
    assert oracle.error({"key": key, "old": old, "consistency": proof}) == ""
