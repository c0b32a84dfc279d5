"""The rotation of both keys, with the commands: no message is lost, whichever side is first."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents.app.cli import main
from byoc_control_plane import cli as plane
from tests.unit.airgap.airgap_harness import Harness

REFUSED = "refused: not signed with the given key"


class Parties:
    """A customer and a vendor with their keys as files, and the files that are carried."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.harness = Harness(directory)
        self.receipts = directory / "receipts"
        self.bucket = directory / "bucket"
        for place in (self.receipts, self.bucket):
            place.mkdir()
        for number, name in enumerate(("customer", "customer-new", "vendor", "vendor-new")):
            key = Ed25519PrivateKey.from_private_bytes(bytes([number]) * 32)
            private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            (directory / f"{name}.pem").write_bytes(private)
            public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
            (directory / f"{name}.pub").write_bytes(public)

    def export(self, key: str) -> Path:
        """Export the waiting messages; return the new file."""
        before = set(self.harness.output.iterdir())
        own = ["--key", str(self.directory / f"{key}.pem"), "--output", str(self.harness.output)]
        assert main(["export", *own, "--state-dir", str(self.harness.state_dir)]) == 0
        (file,) = set(self.harness.output.iterdir()) - before
        return file

    def import_(self, file: Path, key: str, sign: str) -> int:
        public, own = self.directory / f"{key}.pub", self.directory / f"{sign}.pem"
        signed = ["--key", str(public), "--sign", str(own), "--receipts", str(self.receipts)]
        return plane.main(["import", "org-1", *signed, str(file)])

    def confirm(self, key: str) -> int:
        public = ["--key", str(self.directory / f"{key}.pub")]
        files = map(str, sorted(self.receipts.iterdir()))
        state = ["--state-dir", str(self.harness.state_dir)]
        return main(["import-receipts", *public, *state, *files])

    def stored(self) -> set[str]:
        return {
            str(path.relative_to(self.bucket)) for path in self.bucket.rglob("*") if path.is_file()
        }


@pytest.fixture
def parties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Parties:
    found = Parties(tmp_path)
    monkeypatch.setenv("BYOC_PLANE_BUCKET", f"file://{found.bucket}")
    monkeypatch.delenv("BYOC_PLANE_PREFIX", raising=False)
    return found


def test_the_customers_key_is_rotated_while_files_are_on_their_way(
    parties: Parties, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = {message.id for message in parties.harness.add_objects(2)}
    old = parties.export("customer")
    sent |= {message.id for message in parties.harness.add_objects(1)}
    new = parties.export("customer-new")  # holds all three: none is confirmed yet
    assert parties.import_(new, "customer", "vendor") == 1  # the vendor has the old half only
    assert REFUSED in capsys.readouterr().err
    assert parties.stored() == set()
    assert parties.import_(new, "customer-new", "vendor") == 0
    assert parties.import_(old, "customer-new", "vendor") == 1  # a late file, with the other key
    assert parties.import_(old, "customer", "vendor") == 0
    assert parties.stored() == sent
    assert parties.confirm("vendor") == 0
    assert parties.harness.waiting() == []


def test_the_vendors_key_is_rotated_and_a_receipt_with_the_old_one_is_made_again(
    parties: Parties, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = {message.id for message in parties.harness.add_objects(2)}
    file = parties.export("customer")
    assert parties.import_(file, "customer", "vendor") == 0
    assert parties.confirm("vendor-new") == 1  # the customer removed the old half too early
    assert REFUSED in capsys.readouterr().err
    assert set(parties.harness.waiting()) == sent  # nothing is removed by a refused receipt
    assert parties.import_(file, "customer", "vendor-new") == 0  # the same file once more
    assert parties.confirm("vendor-new") == 0
    assert parties.harness.waiting() == []
    assert parties.stored() == sent


def test_a_lost_key_of_the_customer_loses_no_message(parties: Parties) -> None:
    """A file that nobody can import any more is replaced by the next export."""
    sent = {message.id for message in parties.harness.add_objects(2)}
    parties.export("customer").unlink()
    assert parties.import_(parties.export("customer-new"), "customer-new", "vendor") == 0
    assert parties.stored() == sent
    assert parties.confirm("vendor") == 0
    assert parties.harness.waiting() == []
