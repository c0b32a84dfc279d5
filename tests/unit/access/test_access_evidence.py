"""The evidence of a grant, checked with sha256sum, openssl and securesystemslib only."""

import base64
import itertools
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from byoc_agents.access.orders import Approve, Revoke, Submit
from byoc_agents.access_commands import main
from byoc_agents.report import main as ledger
from tests.unit.access.access_documents import GRANT_ID, approval_envelope, request_envelope
from tests.unit.access.scripted_broker import Harness


@pytest.fixture
async def harness(tmp_path: Path) -> AsyncIterator[Harness]:
    """Give a harness in which a grant was opened by a signed approval, used, and revoked."""
    harness = Harness(tmp_path)
    (tmp_path / "access-broker").symlink_to(harness.state)
    harness.write_policy(approval="signed")
    async with harness.running():
        request = request_envelope()
        await harness.order(Submit(envelope=request))
        await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
        await harness.order(Revoke(id=GRANT_ID, by="anna"))
        await harness.passes(1, 2)
        yield harness


def write(harness: Harness) -> Path:
    out = harness.directory / "evidence"
    environ = {
        "BYOC_STATE_DIR": str(harness.directory),
        "BYOC_ACCESS_CA_DIR": str(harness.directory / "ca"),
    }
    assert main(["evidence", GRANT_ID[:8], "--out", str(out)], environ) == 0
    return out


def run(*command: str, cwd: Path, text: bytes = b"") -> str:
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


async def test_the_pack_has_every_file_and_sha256sum_agrees(harness: Harness) -> None:
    out = write(harness)
    assert sorted(path.name for path in out.iterdir()) == [
        *("README.txt", "SHA256SUMS", "access-ca.crt", "approval-1.dsse.json", "certificate.pem"),
        *("ledger.jsonl", f"policy-{summary(out)['policy_sha256']}.yaml", "r0-queries.jsonl"),
        *("r0-sessions.jsonl", "r1-queries.jsonl", "r1-sessions.jsonl", "request.dsse.json"),
        "summary.json",
    ]
    assert run("sha256sum", "--strict", "-c", "SHA256SUMS", cwd=out).count(": OK") == 12


def summary(out: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((out / "summary.json").read_text())
    return found


async def test_a_changed_file_is_found(harness: Harness) -> None:
    out = write(harness)
    path = out / "r0-queries.jsonl"
    path.write_bytes(path.read_bytes().replace(b"SELECT 1", b"SELECT 2"))
    with pytest.raises(subprocess.CalledProcessError):
        run("sha256sum", "-c", "SHA256SUMS", cwd=out)


async def test_a_stranger_verifies_request_and_approval_by_the_keys_of_the_policy(
    harness: Harness,
) -> None:
    out = write(harness)
    (path,) = out.glob("policy-*.yaml")
    policy = yaml.safe_load(path.read_text())
    for name, keys in (("request", "vendor_keys"), ("approval-1", "approvers")):
        envelope = Envelope.from_dict(json.loads((out / f"{name}.dsse.json").read_text()))
        (key, *_) = policy[keys]
        public = base64.b64decode(key["ed25519"]).hex()
        strangers = SSlibKey(key["id"], "ed25519", "ed25519", {"public": public})
        assert list(envelope.verify([strangers], 1)) == [key["id"]]
    approval = json.loads(envelope.payload)
    request = Envelope.from_dict(json.loads((out / "request.dsse.json").read_text()))
    digest = run("sha256sum", cwd=out, text=request.payload).split()[0]
    assert approval["request_sha256"] == digest == summary(out)["request_sha256"]


async def test_openssl_verifies_the_certificate(harness: Harness) -> None:
    out = write(harness)
    verify = ("openssl", "verify", "-CAfile", "access-ca.crt", "-no_check_time", "certificate.pem")
    assert run(*verify, cwd=out) == "certificate.pem: OK\n"
    names = ("openssl", "x509", "-in", "certificate.pem", "-noout", "-ext", "subjectAltName")
    assert f"URI:spiffe://svc-1.byoc/grant/{GRANT_ID}" in run(*names, cwd=out)


async def test_the_lines_of_the_ledger_are_a_chain_with_the_digests_of_the_logs(
    harness: Harness,
) -> None:
    out = write(harness)
    lines = (out / "ledger.jsonl").read_bytes().splitlines()
    for one, after in itertools.pairwise(lines):
        digest = run("sha256sum", cwd=out, text=one).split()[0]
        assert json.loads(after)["previous"] == digest
    facts = [json.loads(line) for line in lines]
    assert [facts[0]["fact"], facts[-1]["fact"]] == ["pending", "closed"]
    collected = [fact["detail"] for fact in facts if fact.get("fact") == "collected"]
    assert len(collected) == 2
    for detail in collected:
        name = f"{detail['replica']}-queries.jsonl"
        assert run("sha256sum", name, cwd=out).split()[0] == detail["queries_sha256"]
    (policy,) = out.glob("policy-*.yaml")
    digest = run("sha256sum", policy.name, cwd=out).split()[0]
    assert {fact["sha256"]["policy"] for fact in facts if "sha256" in fact} == {digest}


async def test_what_is_missing_is_named_and_exit_code_1(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    (harness.state / "logs" / GRANT_ID / "r0-queries.jsonl").unlink()
    out = harness.directory / "evidence"
    command = ["evidence", GRANT_ID, "--out", str(out), "--state-dir", str(harness.directory)]
    assert main(command, {"BYOC_ACCESS_CA_DIR": str(harness.directory / "ca")}) == 1
    assert "r0-queries.jsonl: No such file" in (out / "missing.txt").read_text()
    assert "missing: r0-queries.jsonl" in capsys.readouterr().err
    run("sha256sum", "--strict", "-c", "SHA256SUMS", cwd=out)


async def test_a_changed_log_is_named(harness: Harness) -> None:
    path = harness.state / "logs" / GRANT_ID / "r1-queries.jsonl"
    path.write_bytes(path.read_bytes() + b"{}\n")
    out = harness.directory / "evidence"
    assert main(
        ["evidence", GRANT_ID, "--out", str(out)], {"BYOC_STATE_DIR": str(harness.directory)}
    )
    assert "is not the one that was collected" in (out / "missing.txt").read_text()


async def test_ledger_show_prints_the_facts(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ledger(["show", str(harness.directory), "--id", GRANT_ID], {}) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if GRANT_ID in line]
    names = [line.split()[2] for line in lines]
    assert names[:3] == ["pending", "approved", "opening"]
    assert names[-1] == "closed"
    assert ledger(["show", str(harness.directory), "--id", GRANT_ID, "--json"], {}) == 0
    rows = [one for one in capsys.readouterr().out.splitlines() if '"fact"' in one]
    assert json.loads(rows[0])["fact"] == "pending"
    assert ledger(["show", str(harness.directory), "--type", "x"], {}) == 0
    assert GRANT_ID not in capsys.readouterr().out


# The report.


async def test_the_page_has_who_why_and_what_and_loads_nothing(harness: Harness) -> None:
    page = harness.directory / "access.html"
    assert main(["report", "--html", str(page), "--state-dir", str(harness.directory)], {}) == 0
    text = page.read_text()
    for part in ("A. Example (eng-8841)", "CS-1234", "sec-1", "✓ nobody has access now"):
        assert part in text
    assert "default-src &#39;none&#39;" in text
    assert "http://" not in text
    assert text.count(f'id="grant-{GRANT_ID}"') == 1


async def test_hostile_texts_are_escaped_in_the_page_and_on_the_terminal(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    engineer = {"id": "eng-1", "name": "<script>alert(1)</script>"}
    other = GRANT_ID.replace("0190a7c2", "0190a7c3")
    await harness.order(Submit(envelope=request_envelope(id=other, engineer=engineer)), "9")
    assert main(["report", "--html", "-", "--state-dir", str(harness.directory)], {}) == 0
    text = capsys.readouterr().out
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)" in text


async def test_the_report_is_also_text_and_json(
    harness: Harness, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "--state-dir", str(harness.directory)], {}) == 0
    assert "counts       queries 6, failed_logins 0" in capsys.readouterr().out
    assert main(["report", "--json", "--state-dir", str(harness.directory)], {}) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["counts"]["queries"] == 6
