"""`byoc-agents ledger checkpoint`, `prove` and `verify --heads`, as a customer uses them."""

import asyncio
import base64
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents.ledger.tree import continues, decode_hash, hash_leaf, includes
from byoc_agents.report import main
from tests.unit.ledger.ledger_fakes import files, written
from tests.unit.report.ledger_example import write_example_ledger

Output = pytest.CaptureFixture[str]
OLD = Path(__file__).parents[2] / "upgrade/versions/0.1.0"
DAEMONS = ("alert-forwarder", "billing-scraper", "state-exporter")


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    return asyncio.run(write_example_ledger(tmp_path / "state", hours=2))


def pem(key: Ed25519PrivateKey | X25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pem"
    path.write_bytes(pem(Ed25519PrivateKey.from_private_bytes(b"k" * 32)))
    return path


def printed(capsys: Output, *arguments: object) -> str:
    capsys.readouterr()  # the log of a ledger that the test has written
    assert main(list(map(str, arguments))) == 0
    return capsys.readouterr().out


def refused(capsys: Output, *arguments: object) -> str:
    assert main(list(map(str, arguments))) == 2
    return capsys.readouterr().err


def test_checkpoints_are_kept_and_confirmed_later(
    state_dir: Path, key_file: Path, tmp_path: Path, capsys: Output
) -> None:
    kept = tmp_path / "heads.txt"
    first = printed(capsys, "checkpoint", state_dir, "--key", key_file)
    assert [line for line in first.splitlines() if line.startswith("byoc-agents/")] == [
        f"byoc-agents/{daemon}" for daemon in DAEMONS
    ]
    asyncio.run(written(state_dir / "billing-scraper" / "ledger"))
    second = printed(capsys, "checkpoint", state_dir, "--key", key_file)
    kept.write_text(first + second)
    out = printed(capsys, "verify", state_dir, "--heads", kept, "--key", key_file)
    assert out.count(": OK") == 3
    assert out.count("2 kept heads confirmed") == 3
    name = printed(capsys, "checkpoint", state_dir, "--key", key_file, "--public-key")
    line = next(line for line in name.splitlines() if "billing" in line)
    (tmp_path / "public").write_text(line)
    out = printed(capsys, "verify", state_dir, "--heads", kept, "--key", tmp_path / "public")
    assert out.count(": OK") == 3


def test_without_a_key_plain_heads_are_printed(
    state_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    out = printed(capsys, "checkpoint", state_dir)
    assert [line.split()[2] for line in out.splitlines()] == [f"byoc-agents/{d}" for d in DAEMONS]
    (tmp_path / "heads").write_text(out)
    assert printed(capsys, "verify", state_dir, "--heads", tmp_path / "heads").count(": OK") == 3
    size, root, _ = out.splitlines()[1].split()
    (tmp_path / "heads").write_text(f"{size} {root}\n")
    named = ["--daemon", "billing-scraper"]
    assert "confirmed" in printed(
        capsys, "verify", state_dir, *named, "--heads", tmp_path / "heads"
    )
    assert "add --daemon" in refused(capsys, "verify", state_dir, "--heads", tmp_path / "heads")


def test_kept_heads_of_a_ledger_that_is_not_there_are_named(
    state_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    kept = tmp_path / "heads"
    kept.write_text(printed(capsys, "checkpoint", state_dir))
    shutil.rmtree(state_dir / "state-exporter")
    assert main(["verify", str(state_dir), "--heads", str(kept)]) == 1
    assert (
        "kept heads named byoc-agents/state-exporter are of no ledger here"
        in capsys.readouterr().err
    )
    one = ["--daemon", "billing-scraper"]
    assert ": OK" in printed(capsys, "verify", state_dir, *one, "--heads", kept)


def test_the_key_can_be_in_the_environment(
    state_dir: Path, key_file: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_file = printed(capsys, "checkpoint", state_dir, "--key", key_file)
    monkeypatch.setenv("BYOC_LEDGER_SIGNING_KEY", key_file.read_text())
    assert printed(capsys, "checkpoint", state_dir) == by_file


def test_a_changed_ledger_is_found_by_its_checkpoint(
    state_dir: Path, key_file: Path, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "heads").write_text(printed(capsys, "checkpoint", state_dir, "--key", key_file))
    shutil.rmtree(state_dir / "state-exporter" / "ledger")
    asyncio.run(written(state_dir / "state-exporter" / "ledger"))
    assert main(["verify", str(state_dir), "--heads", str(tmp_path / "heads")]) == 1
    out = capsys.readouterr().out
    assert "state-exporter: FAILED" in out
    assert out.count(": OK") == 2


def test_a_checkpoint_of_another_key_or_with_another_text_is_refused(
    state_dir: Path, key_file: Path, tmp_path: Path, capsys: Output
) -> None:
    note = printed(capsys, "checkpoint", state_dir, "--daemon", "state-exporter", "--key", key_file)
    other = tmp_path / "other.pem"
    other.write_bytes(pem(Ed25519PrivateKey.from_private_bytes(b"o" * 32)))
    heads = tmp_path / "heads"
    size = note.splitlines()[1]
    for text, key in (
        (note, other),
        (note.replace(f"\n{size}\n", f"\n{int(size) - 1}\n"), key_file),
        (note.replace("/state-exporter\n", "/billing-scraper\n"), key_file),
        (note.split("\n\n")[0] + "\n", key_file),
    ):
        heads.write_text(text)
        error = refused(capsys, "verify", state_dir, "--heads", heads, "--key", key)
        assert "not signed with the key" in error


def test_a_proof_of_a_line_needs_only_the_line(
    state_dir: Path, key_file: Path, capsys: Output
) -> None:
    which = [state_dir, "--daemon", "billing-scraper"]
    proof, note = printed(capsys, "prove", *which, "--line", 5, "--key", key_file).split("\n\n", 1)
    version, index, *path = proof.splitlines()
    assert (version, index) == ("c2sp.org/tlog-proof@v1", "index 5")
    assert note == printed(capsys, "checkpoint", *which, "--key", key_file).rstrip("\n") + "\n"
    size, root = note.splitlines()[1:3]
    line = files(state_dir / "billing-scraper" / "ledger")[0].read_bytes().splitlines()[5]
    hashes = [decode_hash(one) for one in path]
    assert includes(decode_hash(root), int(size), 5, hash_leaf(line), hashes)
    assert not includes(decode_hash(root), int(size), 5, hash_leaf(line + b" "), hashes)


def test_a_proof_of_an_earlier_size_connects_two_checkpoints(
    state_dir: Path, capsys: Output
) -> None:
    which = [state_dir, "--daemon", "billing-scraper"]
    size, root, _ = printed(capsys, "checkpoint", *which).split()
    asyncio.run(written(state_dir / "billing-scraper" / "ledger", sends=20))
    proof, note = printed(capsys, "prove", *which, "--from", size).split("\n\n", 1)
    old, *path = proof.splitlines()
    assert old == f"old {size}"
    name, later, new = note.splitlines()
    assert name == "byoc-agents/billing-scraper"
    hashes = [decode_hash(one) for one in path]
    assert continues(decode_hash(root), int(size), decode_hash(new), int(later), hashes)
    earlier = printed(capsys, "prove", *which, "--from", 3, "--size", size)
    assert earlier.splitlines()[-2:] == [size, root]


def test_what_cannot_be_proven_is_refused(state_dir: Path, key_file: Path, capsys: Output) -> None:
    which = [state_dir, "--daemon", "billing-scraper"]
    assert "which are kept" in refused(capsys, "prove", *which, "--line", 999_999)
    assert "which are kept" in refused(capsys, "prove", *which, "--from", 999_999)
    assert "add --daemon" in refused(capsys, "prove", state_dir, "--line", 1)
    assert "without spaces" in refused(
        capsys, "checkpoint", *which, "--origin", "a b", "--key", key_file
    )


def test_a_key_or_heads_that_cannot_be_used_are_named(
    state_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_bytes(pem(X25519PrivateKey.generate()))
    assert "expected an Ed25519 key in PEM" in refused(
        capsys, "checkpoint", state_dir, "--key", bad
    )
    bad.write_text("no key")
    assert "expected an Ed25519 key" in refused(capsys, "checkpoint", state_dir, "--key", bad)
    assert "--public-key: expected --key" in refused(
        capsys, "checkpoint", state_dir, "--public-key"
    )
    assert "expected a checkpoint" in refused(capsys, "verify", state_dir, "--heads", bad)
    bad.write_bytes(b"\xff\n")
    assert "can't decode byte 0xff" in refused(capsys, "verify", state_dir, "--heads", bad)
    bad.write_text("# none\n")
    assert "no head: expected" in refused(capsys, "verify", state_dir, "--heads", bad)
    assert "No such file" in refused(capsys, "verify", state_dir, "--heads", tmp_path / "no")


def test_a_key_of_openssl_and_its_public_part_are_taken(
    state_dir: Path, tmp_path: Path, capsys: Output
) -> None:
    private, public, heads = (tmp_path / name for name in ("key.pem", "public.pem", "heads"))
    subprocess.run(
        ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private], check=True, timeout=30
    )
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    heads.write_text(printed(capsys, "checkpoint", state_dir, "--key", private))
    assert printed(capsys, "verify", state_dir, "--heads", heads, "--key", public).count("OK") == 3


def test_the_key_is_named_as_signed_notes_name_it(
    state_dir: Path, key_file: Path, capsys: Output
) -> None:
    which = [state_dir, "--daemon", "billing-scraper", "--origin", "acme.example/r1"]
    line = printed(capsys, "checkpoint", *which, "--key", key_file, "--public-key").strip()
    name, key_hash, encoded = line.split("+", 2)
    assert name == "acme.example/r1/billing-scraper"
    raw = Ed25519PrivateKey.from_private_bytes(b"k" * 32).public_key()
    public = raw.public_bytes(Encoding.Raw, PublicFormat.Raw)
    assert base64.b64decode(encoded) == b"\x01" + public
    note = printed(capsys, "checkpoint", *which, "--key", key_file)
    signature = base64.b64decode(note.splitlines()[-2].split()[-1])
    assert signature[:4].hex() == key_hash


def test_a_ledger_of_0_1_is_verified_and_continued(tmp_path: Path, capsys: Output) -> None:
    old = next(OLD.rglob("ledger-000001.jsonl")).parent
    directory = tmp_path / "billing-scraper" / "ledger"
    shutil.copytree(old, directory)
    before = printed(capsys, "verify", directory)
    assert "tree" not in before
    assert "no line with a tree yet" in refused(capsys, "checkpoint", directory)
    head = next(line for line in before.splitlines() if line.startswith("  head ")).split()[1]
    asyncio.run(written(directory))
    heads = tmp_path / "heads"
    heads.write_text(printed(capsys, "checkpoint", directory) + f"{head}\n")
    out = printed(capsys, "verify", tmp_path, "--heads", heads, "--daemon", "billing-scraper")
    assert "2 kept heads confirmed" in out


def test_commands_without_a_key_do_not_need_the_extra(state_dir: Path) -> None:
    """`cryptography` takes 20 MiB, and is not in the images."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from byoc_agents.report import main\n"
        "assert main(['verify', sys.argv[1]]) == 0\n"
        "assert main(['checkpoint', sys.argv[1]]) == 0\n"
        "assert main(['checkpoint', sys.argv[1], '--key', sys.argv[2]]) == 2\n"
    )
    arguments = [sys.executable, "-c", code, str(state_dir), __file__]
    ran = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 0, ran.stderr
    assert "pip install 'byoc-agents[checkpoint]'" in ran.stderr
