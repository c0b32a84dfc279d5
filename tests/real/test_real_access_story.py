"""`make demo-access` through real Tailscale and nginx: each of its steps, and its evidence.

The demo runs once. The evidence is verified here by sha256sum and openssl, with no code of ours.
"""

import base64
import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.demo import access
from lab.demo.access import Step
from lab.demo.access_server import REFUSED
from lab.fakes.access import LONG_QUERY
from lab.tailnet.certificates import GRANT
from lab.tailnet.environment import REPLICA, SERVICE
from lab.tailnet.policies import SERVERS

pytestmark = pytest.mark.quiet  # two times are measured
REVOKED_SECONDS = 5.0  # as docs/access.md says
CUT_SECONDS = 5.0  # as docs/access-network.md says
URI = f"spiffe://{SERVICE}.byoc/grant/{GRANT}"
USER = f"byoc_grant_{GRANT.replace('-', '')}"
QUERY = "SELECT currentUser()"
ED25519 = bytes.fromhex("302a300506032b6570032100")  # RFC 8410: before the key's bytes


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ad") / "run"


@pytest.fixture(scope="module")
def printed() -> list[str]:
    return []


@pytest.fixture(scope="module")
def steps(directory: Path, printed: list[str]) -> dict[str, Step]:
    """Play the scenario; give its steps by name."""
    return {step.name: step for step in access.play(directory, say=printed.append)}


def run(*command: str, cwd: Path, text: bytes = b"") -> str:
    done = subprocess.run(command, cwd=cwd, input=text, capture_output=True, check=True, timeout=60)
    return done.stdout.decode()


# --- the steps ---


def test_the_steps_are_in_this_order(steps: dict[str, Step], printed: list[str]) -> None:
    assert [*steps] == [
        *("prepared", "checked", "requested", "refused before the approval", "approved"),
        *(
            "certificate",
            "queried",
            "revoked",
            "refused after the revocation",
            "kill switch",
            "cut",
        ),
        *("collected", "verified"),
    ]
    assert "Tailscale" in steps["prepared"].happened
    assert len(printed) == len(steps) + 2
    assert not any("no tailnet" in line for line in printed)


def test_a_request_that_the_vendors_key_did_not_sign_is_refused(steps: dict[str, Step]) -> None:
    assert "too_few_signatures" in steps["requested"].seen["refused"]


def test_queries_before_the_approval_are_refused(steps: dict[str, Step]) -> None:
    """No certificate and a foreign one end in the handshake; the right name has no user."""
    seen = steps["refused before the approval"].seen
    assert "answer" not in seen["none"]
    assert "answer" not in seen["foreign"]
    assert seen["good"]["answer"] == REFUSED


def test_the_vendor_is_sent_the_certificate_after_the_approval(
    steps: dict[str, Step], directory: Path
) -> None:
    event = steps["approved"].seen["event"]
    assert (event["state"], event["duration_seconds"]) == ("open", 1800)
    assert steps["certificate"].seen["uri"] == URI
    files = [one for one in (directory / "vendor").rglob("*") if one.is_file()]
    events = [json.loads(one.read_bytes()) for one in files]
    states = [one["data"]["state"] for one in events]
    assert {"pending", "open", "closed"} <= set(states)
    assert "anna" not in json.dumps(events), "the approver stays with the customer"


def test_the_query_is_answered_through_nginx_by_the_grants_user(
    steps: dict[str, Step], directory: Path
) -> None:
    seen = steps["queried"].seen
    assert (seen["answer"], seen["native"]) == (USER, USER)
    assert seen["refused"].startswith("OSError: code 516: "), "another user's certificate"
    lines = (directory / "proxy.log").read_text().splitlines()
    reached = [one for one in map(json.loads, (x for x in lines if x.startswith("{"))) if one]
    names = {one["server_name"] for one in reached if one.get("to") == f"{SERVERS}:9441"}
    assert names == {REPLICA}


def test_after_the_revocation_the_open_connection_is_refused_in_time(
    steps: dict[str, Step],
) -> None:
    seen = steps["revoked"].seen
    assert seen["answer"] == f"{GRANT}: closing"
    assert seen["answers"] > 0, "the connection was open and in use"
    assert seen["seconds"] < REVOKED_SECONDS


def test_after_the_revocation_the_live_native_session_is_refused_in_time(
    steps: dict[str, Step],
) -> None:
    """By clickhouse-driver, with the code of a user that was dropped."""
    seen = steps["revoked"].seen["native"]
    assert seen["answers"] > 0, "the session was live and in use"
    assert seen["error"].startswith("OSError: code 192: ")
    assert 0 < seen["seconds"] < REVOKED_SECONDS


def test_the_revocation_ends_a_running_query_in_time(steps: dict[str, Step]) -> None:
    assert 0 < steps["revoked"].seen["killed_seconds"] < REVOKED_SECONDS


def test_the_kill_switch_ends_a_running_query_in_time(steps: dict[str, Step]) -> None:
    seen = steps["kill switch"].seen
    assert 0 < seen["killed_seconds"] < REVOKED_SECONDS
    assert seen["printed"].splitlines()[-1] == "nobody has access"
    assert seen["event"]["reason"] == "kill_switch"
    assert seen["after"]["answer"] == REFUSED


def test_the_kill_switch_ends_the_open_connection_and_the_native_session_in_time(
    steps: dict[str, Step],
) -> None:
    seen = steps["kill switch"].seen
    assert seen["answers"] > 0, "the connection was open and in use"
    assert 0 < seen["seconds"] < REVOKED_SECONDS
    assert seen["native"]["answers"] > 0, "the session was live and in use"
    assert seen["native"]["error"].startswith("OSError: code 192: ")
    assert 0 < seen["native"]["seconds"] < REVOKED_SECONDS


def test_after_the_revocation_new_connections_are_refused(steps: dict[str, Step]) -> None:
    seen = steps["refused after the revocation"].seen
    assert seen["engineer"]["answer"] == REFUSED
    assert seen["good"]["answer"] == REFUSED
    assert seen["status"].startswith("nobody has access")


def test_the_closed_network_path_cuts_the_connection_in_time(steps: dict[str, Step]) -> None:
    """The pod closes nothing through the relay: the client sees silence until its own timeout."""
    seen = steps["cut"].seen
    assert seen["last"] < CUT_SECONDS
    assert seen["seconds"] < 2 * CUT_SECONDS
    assert seen["error"]
    assert seen["reached"] != "open"


def test_the_vendor_is_sent_counts_and_no_query(steps: dict[str, Step], directory: Path) -> None:
    event = steps["collected"].seen["event"]
    assert (event["reason"], event["record"], event["certificate"]) == ("revoked", "complete", "")
    assert event["counts"]["queries"] == steps["verified"].seen["queries"]
    sent = [one.read_text() for one in (directory / "vendor").rglob("*") if one.is_file()]
    assert not any(QUERY in text for text in sent)


# --- the evidence ---


@pytest.fixture
def pack(steps: dict[str, Step], directory: Path) -> Path:
    assert "verified" in steps
    return directory / "evidence"


def test_sha256sum_verifies_each_file(pack: Path) -> None:
    listed = run("sha256sum", "--strict", "-c", "SHA256SUMS", cwd=pack).splitlines()
    names = sorted(line.removesuffix(": OK") for line in listed)
    assert names == sorted(one.name for one in pack.iterdir() if one.name != "SHA256SUMS")


def test_openssl_verifies_the_certificate_of_the_engineers_key(pack: Path, directory: Path) -> None:
    verify = ("openssl", "verify", "-CAfile", "access-ca.crt", "-no_check_time", "certificate.pem")
    assert run(*verify, cwd=pack) == "certificate.pem: OK\n"
    public = ("openssl", "pkey", "-in", str(directory / "engineer.pem"), "-pubout")
    of_certificate = ("openssl", "x509", "-in", "certificate.pem", "-noout", "-pubkey")
    assert run(*of_certificate, cwd=pack) == run(*public, cwd=pack)


def envelope_of(pack: Path, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((pack / f"{name}.dsse.json").read_text())
    return found


@pytest.mark.parametrize(
    ("name", "keys"), [("request", "vendor_keys"), ("approval-1", "approvers")]
)
def test_openssl_verifies_the_signatures_by_the_keys_of_the_policy(
    pack: Path, name: str, keys: str, tmp_path: Path
) -> None:
    """And refuses the same signature of a changed payload."""
    (policy,) = pack.glob("policy-*.yaml")
    (key,) = yaml.safe_load(policy.read_text())[keys]
    envelope = envelope_of(pack, name)
    payload, kind = base64.b64decode(envelope["payload"]), envelope["payloadType"].encode()
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    (signature,) = envelope["signatures"]
    (tmp_path / "key.der").write_bytes(ED25519 + base64.b64decode(key["ed25519"]))
    (tmp_path / "signature").write_bytes(base64.b64decode(signature["sig"]))
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "changed").write_bytes(signed.replace(GRANT.encode(), b"f" * len(GRANT)))
    own = ("-pubin", "-keyform", "DER", "-inkey", "key.der", "-sigfile", "signature")
    verify = ("openssl", "pkeyutl", "-verify", "-rawin", *own)
    assert "Successfully" in run(*verify, "-in", "signed", cwd=tmp_path)
    with pytest.raises(subprocess.CalledProcessError):
        run(*verify, "-in", "changed", cwd=tmp_path)


def test_the_approval_names_the_bytes_of_the_request(pack: Path) -> None:
    request = base64.b64decode(envelope_of(pack, "request")["payload"])
    approval = json.loads(base64.b64decode(envelope_of(pack, "approval-1")["payload"]))
    assert run("sha256sum", cwd=pack, text=request).split()[0] == approval["request_sha256"]


def test_the_ledger_is_a_chain_from_the_request_to_the_end(pack: Path) -> None:
    lines = (pack / "ledger.jsonl").read_bytes().splitlines()
    for one, after in itertools.pairwise(lines):
        assert json.loads(after)["previous"] == run("sha256sum", cwd=pack, text=one).split()[0]
    own = [line for line in map(json.loads, lines) if line.get("subject") == GRANT]
    facts = [line["fact"] for line in own]
    found = [fact for fact in facts if fact in {"pending", "approved", "open", "closing", "closed"}]
    assert found == ["pending", "approved", "open", "closing", "closed"]


def test_the_logs_have_every_answered_query_and_the_digest_of_the_ledger(
    pack: Path, steps: dict[str, Step]
) -> None:
    rows = [json.loads(row) for row in (pack / "r0-queries.jsonl").read_text().splitlines()]
    started = [row["query"] for row in rows if row["type"] == "QueryStart"]
    revoked = steps["revoked"].seen
    assert started.count(QUERY) == revoked["answers"] + revoked["native"]["answers"] + 2
    assert started.count(LONG_QUERY) == 1
    assert len(started) == steps["verified"].seen["queries"]
    ended = [row["query"] for row in rows if row["type"] == "ExceptionWhileProcessing"]
    assert ended == [LONG_QUERY], "KILL QUERY ended it"
    lines = map(json.loads, (pack / "ledger.jsonl").read_text().splitlines())
    about = (line for line in lines if line.get("subject") == GRANT)
    (detail,) = [line["detail"] for line in about if line["fact"] == "collected"]
    digest = run("sha256sum", "r0-queries.jsonl", cwd=pack).split()[0]
    assert detail["queries_sha256"] == digest
