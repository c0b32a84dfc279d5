"""`make demo-access`: access of an engineer from the request to the evidence, in one command.

The broker, its commands, the certificates and the evidence are the product's. ClickHouse is a
stand-in (`access_server`). The engineer's way to it is real Tailscale and nginx if they are
installed and the demo runs as root, else the loopback interface (`access_route`).
"""

import argparse
import base64
import io
import itertools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from byoc_agents import access_commands
from byoc_agents.access.clickhouse_admin import user_of
from byoc_agents.access.documents import REQUEST, AccessRequest, utc_text
from byoc_agents.envelope import Envelope, encode_for_signing, sign
from lab.demo import access_route
from lab.demo.access_route import Route
from lab.demo.access_server import REFUSED
from lab.demo.process import DemoError, forget_accounts
from lab.fakes.access import CANCELLED, LONG_QUERY, QUERY, RUNNING_QUERY
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError
from lab.tailnet.certificates import GRANT
from lab.tailnet.engineer import Held
from lab.tailnet.environment import SERVICE, launch

DIRECTORY = ROOT / "build" / "demo-access"
ORGANIZATION, REPLICA = "org-1", "r0"
VENDOR, APPROVER = "vendor-2026", "sec-1"  # ids of the keys in the policy
MINUTES = 30  # approved; the request asks for an hour
END_SECONDS = (
    60.0  # the drill of docs/access.md; the printed times are far below on an idle machine
)
SECOND = "0190a7c2-7e5b-7c3e-8d21-f0a4b6c8d9e1"  # the grant that the kill switch ends
SILENCE_SECONDS = 5.0  # after which the client ends its connection; docs/access-network.md
WAIT_SECONDS = 60.0  # for one step on a busy machine; each wait ends as soon as it may
POLL_SECONDS = 0.05
LINE = f"{QUERY}\n"
RECORD = "record.jsonl"


class Step(NamedTuple):
    """One step. `seen` has the observations, for a test."""

    name: str
    happened: str
    where: str  # file of the directory, or the command, that shows it
    seen: dict[str, Any]


def main(argv: Sequence[str]) -> int:
    """Run the demo. Return 0 if every step had its expected result, else 1."""
    parser = argparse.ArgumentParser(prog="python -m lab.demo.access", description=__doc__)
    parser.add_argument("--loopback", action="store_true", help="do not use a tailnet")
    parser.add_argument("--directory", type=Path, default=DIRECTORY, help="of the run's files")
    options = parser.parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    forget_accounts(os.environ)
    obstacle = "asked for" if options.loopback else access_route.find_obstacle()
    try:
        play(options.directory, loopback=obstacle, say=_print)
    except (DemoError, PartError) as error:
        sys.stderr.write(f"demo-access: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("stopped; every process of the demo has ended\n")
        return 130
    return 0


def _stop(*_: object) -> None:
    raise KeyboardInterrupt


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def play(directory: Path, *, loopback: str = "", say: Callable[[str], None] = _print) -> list[Step]:
    """Play the scenario in an emptied directory; return the steps. Raises DemoError and PartError.

    `loopback` is the reason for not using a tailnet; empty = use it.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    say(f"the files of this run are in {directory}")
    if loopback:
        say(f"no tailnet: {loopback}")
    way = access_route.through_loopback if loopback else access_route.through_tailnet
    began, steps = time.monotonic(), []
    with way(directory) as route, (directory / RECORD).open("w") as record:
        for step in Scenario(directory, route).steps():
            steps.append(step)
            seconds = time.monotonic() - began
            record.write(json.dumps({"seconds": round(seconds, 1), **step._asdict()}) + "\n")
            record.flush()
            say(f"{seconds:4.0f} s  {step.happened}  [{step.where}]")
    say(f"OK: {len(steps)} steps, recorded in {RECORD}")
    return steps


class Scenario:
    """The steps in order. Each raises DemoError if its result is not the expected one."""

    def __init__(self, directory: Path, route: Route) -> None:
        self._directory = directory
        self._route = route
        self._vendor, self._approver = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
        self._engineer = ec.generate_private_key(ec.SECP256R1())
        self._queries = 0  # answered ones
        self._asked: dict[str, int] = {}  # other queries, by text
        self._password = secrets.token_urlsafe()  # of the broker's login

    def steps(self) -> Iterator[Step]:
        """Yield each step after it has happened."""
        yield self._prepare()
        with self._broker():
            yield self._check()
            yield self._request()
            yield self._refuse_before_approval()
            yield self._approve()
            yield self._take_certificate()
            yield self._query()
            yield from self._end()
            yield self._collect()
        yield self._verify()

    # --- the customer prepares ---

    def _prepare(self) -> Step:
        policy = {
            "version": 1,
            "approval": "signed",
            "vendor_keys": [{"id": VENDOR, "ed25519": _public(self._vendor)}],
            "approvers": [{"id": APPROVER, "ed25519": _public(self._approver)}],
            "max_duration": "1h",
            "ticket": "CS-[0-9]+",
            "roles": {"system-reader": {"clickhouse_role": "byoc_access_reader"}},
        }
        (self._directory / "policy.yaml").write_text(yaml.safe_dump(policy, sort_keys=False))
        (self._directory / "approver.pem").write_bytes(_private(self._approver))
        for name in ("state", "vendor"):
            (self._directory / name).mkdir()
        printed = self._access("policy", str(self._directory / "policy.yaml"))
        return Step(
            "prepared",
            f"the customer's policy pins the vendor's key {VENDOR} and needs an approval signed by"
            f" {APPROVER}; the engineer connects through {self._route.name}",
            "policy.yaml",
            {"policy": printed},
        )

    @contextmanager
    def _broker(self) -> Iterator[None]:
        """Run the broker, and stop it with SIGTERM. Raises DemoError if it does not exit with 0."""
        command = [sys.executable, "-m", "byoc_agents.app.cli", "run", "access-broker"]
        environ = {**os.environ, **self._environ()}
        broker = launch("broker", [*self._route.before, *command], self._directory, environ)
        try:
            broker.wait_for(lambda: "admin.listening" in broker.log.read_text(), "start")
            yield
        finally:
            broker.stop()
        _expect(
            broker.process.returncode == 0, f"the broker ended with {broker.process.returncode}"
        )

    def _check(self) -> Step:
        answer = self._access("check")
        _expect(answer == f"{REPLICA}: ok", answer)
        return Step(
            "checked",
            f"the broker runs, and its checks of the server passed: {answer}",
            "broker.log",
            {"answer": answer},
        )

    # --- the vendor asks, the customer answers ---

    def _request(self) -> Step:
        request = self._make_request(GRANT)
        file = self._directory / "request.dsse.json"
        stranger = sign(REQUEST, request, [(VENDOR, Ed25519PrivateKey.generate())])
        file.write_bytes(stranger)
        refused = self._access("submit", str(file), code=1)
        self._submit(GRANT, file)
        return Step(
            "requested",
            "the vendor's key signed a request for an hour, and it waits for the customer; the same"
            " request signed by another key was refused",
            f"byoc-agents access show {GRANT[:8]}",
            {"refused": refused},
        )

    def _submit(self, grant_id: str, file: Path) -> None:
        file.write_bytes(sign(REQUEST, self._make_request(grant_id), [(VENDOR, self._vendor)]))
        self._access("submit", str(file))
        self._wait_for("pending", grant_id)

    def _make_request(self, grant_id: str) -> bytes:
        now_ms = time.time_ns() // 1_000_000
        csr = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        fields = {
            "id": grant_id,
            "audience": {"organization": ORGANIZATION, "service": SERVICE},
            "issued_at": utc_text(now_ms),
            "expires_at": utc_text(now_ms + 4 * 3_600_000),
            "not_before": utc_text(now_ms),
            "duration_seconds": 3600,
            "role": "system-reader",
            "endpoints": ["clickhouse"],
            "engineer": {"id": "eng-8841", "name": "A. Example"},
            "reason": {"kind": "incident", "ticket": "CS-1234", "text": "merge backlog"},
            "vendor_approval": {"by": "eng-12", "at": utc_text(now_ms)},
            "csr": csr.sign(self._engineer, hashes.SHA256()).public_bytes(Encoding.PEM).decode(),
        }
        return msgspec.json.encode(msgspec.convert(fields, AccessRequest))

    def _refuse_before_approval(self) -> Step:
        """Ask without a certificate, with a foreign one, and with one of the true authority."""
        seen = self._ask_with("", "foreign", "good")
        _expect("answer" not in seen["none"] and "answer" not in seen["foreign"], str(seen))
        _expect(seen["good"].get("answer") == REFUSED, str(seen))
        return Step(
            "refused before the approval",
            "queries were refused: without a certificate, with one of a foreign authority, and with"
            " one of the right authority, because no user has it",
            self._connections(),
            seen,
        )

    def _approve(self) -> Step:
        answer, opened = self._sign_approval(GRANT)
        return Step(
            "approved",
            f"the customer signed an approval of {MINUTES} minutes, and access is open until"
            f" {opened['ends_at']}",
            f"byoc-agents access show {GRANT[:8]}",
            {"answer": answer, "event": opened},
        )

    def _sign_approval(self, grant_id: str) -> tuple[str, dict[str, Any]]:
        """Sign an approval and hand it over; return the answer and the event that it is open."""
        envelope = self._access("show", grant_id, "--envelope")
        shown = self._directory / "shown.dsse.json"
        shown.write_text(envelope)
        key = ["--key", str(self._directory / "approver.pem"), "--key-id", APPROVER]
        shorter = ["--for", f"{MINUTES}m", "--by", "anna"]
        approval = self._directory / "approval.dsse.json"
        approval.write_text(self._access("sign", str(shown), *key, *shorter))
        answer = self._access("approve", grant_id, "--file", str(approval))
        return answer, self._wait_for("open", grant_id)

    # --- the engineer works ---

    def _take_certificate(self) -> Step:
        pem = self._wait_for("open")["certificate"]
        self._write_certificate("engineer", pem)
        certificate = x509.load_pem_x509_certificate(pem.encode())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        return Step(
            "certificate",
            f"an event to the vendor has the certificate for the engineer's key: {uri}",
            "vendor/",
            {"uri": uri, "not_after": certificate.not_valid_after_utc.isoformat()},
        )

    def _query(self) -> Step:
        found = self._ask("engineer")
        native = self._ask("engineer", user=user_of(GRANT))
        for one in (found, native):
            _expect(one.get("answer", "").strip() == user_of(GRANT), str(one))
            self._queries += 1
        refused = self._ask("engineer", user="default")
        _expect("code 516" in refused.get("error", ""), str(refused))
        return Step(
            "queried",
            f"{QUERY} over mutual TLS answered {user_of(GRANT)}, also to clickhouse-driver over the"
            " native protocol; the same certificate was refused as another user",
            self._connections(),
            {
                "answer": found["answer"].strip(),
                "native": native["answer"].strip(),
                "refused": refused["error"],
            },
        )

    def _write_certificate(self, name: str, pem: str) -> None:
        (self._directory / f"{name}.pem").write_bytes(pem.encode() + _private(self._engineer))

    @contextmanager
    def _long_query(self, certificate: str) -> Iterator["Future[dict[str, Any]]"]:
        """Run LONG_QUERY on a connection of its own; it runs on the server when this is entered."""
        with ThreadPoolExecutor(1) as thread:
            answer = thread.submit(self._ask, certificate, LONG_QUERY, timeout=END_SECONDS)
            deadline = time.monotonic() + WAIT_SECONDS
            while True:
                found = self._ask(certificate, RUNNING_QUERY).get("answer")
                self._asked[RUNNING_QUERY] = self._asked.get(RUNNING_QUERY, 0) + 1
                if found == "1\n":
                    break
                _expect(not answer.done(), f"the long query has ended: {answer}")
                _expect(time.monotonic() < deadline, f"the long query does not run: {found}")
                time.sleep(POLL_SECONDS)
            yield answer

    # --- the end ---

    def _end(self) -> Iterator[Step]:
        """Revoke access under two open connections, then close the network path."""
        hold = partial(self._hold, "engineer")
        with hold(send=LINE) as held:
            with (
                hold(send=QUERY, user=user_of(GRANT)) as native,
                self._long_query("engineer") as running,
            ):
                self._asked[LONG_QUERY] = 1
                polls = dict(self._asked)
                yield self._revoke(held, native, running)
            yield self._refuse_after_revocation()
            yield self._kill()
            self._asked = polls  # of the first grant, whose evidence is verified
            if self._route.close:
                yield self._cut(held, self._route.close)

    def _revoke(self, held: Held, native: Held, running: "Future[dict[str, Any]]") -> Step:
        began = time.monotonic()
        answer = self._access("revoke", GRANT, "--by", "anna", "--comment", "solved")
        seconds = _wait_for_refusal(held, began)
        ended = _wait_for_drop(native)
        self._queries += len(held.lines) - 1 + len(native.lines) - 1
        killed = _wait_for_kill(running, began)
        return Step(
            "revoked",
            f"the customer revoked access, and {seconds:.1f} s later the open connection got"
            f" {REFUSED.strip()!r}, after {len(held.lines) - 1} answers; the session of the native"
            f" protocol was refused after {ended['at'] - began:.1f} s, and a query that was running"
            f" ended after {killed:.1f} s with {CANCELLED.strip()!r}",
            f"byoc-agents access show {GRANT[:8]}",
            {
                "answer": answer,
                "seconds": seconds,
                "answers": len(held.lines) - 1,
                "native": _of_native(native, ended, began),
                "killed_seconds": killed,
            },
        )

    def _kill(self) -> Step:
        """Open a second grant, and end its open connections and its query by the kill switch."""
        self._wait_for("closed")
        self._submit(SECOND, self._directory / "second.dsse.json")
        _, opened = self._sign_approval(SECOND)
        self._write_certificate("second", opened["certificate"])
        with (
            self._hold("second", send=LINE) as held,
            self._hold("second", send=QUERY, user=user_of(SECOND)) as native,
            self._long_query("second") as running,
        ):
            began = time.monotonic()
            printed = self._access("kill", "on", "--wait", f"{END_SECONDS:g}")
            waited = time.monotonic() - began
            seconds = _wait_for_refusal(held, began)
            ended = _wait_for_drop(native)
            killed = _wait_for_kill(running, began)
        after = self._ask("second")
        _expect(after.get("answer") == REFUSED, str(after))
        closed = self._wait_for("closed", SECOND)
        self._access("kill", "off")
        return Step(
            "kill switch",
            f"a second grant was open: the kill switch ended its query after {killed:.1f} s;"
            f" its open connection was refused after {seconds:.1f} s, and its native session after"
            f" {ended['at'] - began:.1f} s; the command printed {printed.splitlines()[-1]!r} after"
            f" {waited:.1f} s",
            f"byoc-agents access show {SECOND}",
            {
                "printed": printed,
                "seconds": seconds,
                "answers": len(held.lines) - 1,
                "native": _of_native(native, ended, began),
                "killed_seconds": killed,
                "event": closed,
                "after": after,
            },
        )

    def _refuse_after_revocation(self) -> Step:
        seen = self._ask_with("engineer", "good")
        _expect(all(one.get("answer") == REFUSED for one in seen.values()), str(seen))
        status = self._access("status")
        return Step(
            "refused after the revocation",
            f"new connections with the certificate were refused; {status.splitlines()[0]}",
            "byoc-agents access status",
            {"status": status, **seen},
        )

    def _cut(self, held: Held, close: Callable[[], None]) -> Step:
        began = time.monotonic()
        close()
        end = held.until_error()
        answered = [line["at"] for line in held.lines if "answer" in line]
        last, seconds = max(0.0, answered[-1] - began), end["at"] - began
        _expect(seconds < END_SECONDS, f"the open connection ended after {seconds:.1f} s")
        reached = self._route.engineer.dial(self._route.address, self._route.port)
        _expect(reached != "open", "the endpoint is scaled to 0, and a new connection opens")
        return Step(
            "cut",
            f"the endpoint was scaled to 0: nothing passed the open connection after {last:.1f} s,"
            f" the client saw {end['error']!r} after {seconds:.1f} s, and no new one opens",
            "pod.log",
            {"last": last, "seconds": seconds, "error": end["error"], "reached": reached},
        )

    # --- the evidence ---

    def _collect(self) -> Step:
        closed = self._wait_for("closed")
        _expect(closed["record"] == "complete", str(closed))
        out = self._directory / "evidence"
        printed = self._access("evidence", GRANT, "--out", str(out))
        page = self._directory / "access.html"
        self._access("report", "--html", str(page))
        return Step(
            "collected",
            f"query_log has {closed['counts']['queries']} queries, and the vendor was sent their"
            f" counts only; {printed.replace(f'{self._directory}/', '')}",
            f"{out.name}/, {page.name}",
            {"event": closed},
        )

    def _verify(self) -> Step:
        pack = self._directory / "evidence"
        sums = _run("sha256sum", "--strict", "-c", "SHA256SUMS", cwd=pack)
        verify = ("openssl", "verify", "-CAfile", "access-ca.crt", "-no_check_time")
        certificate = _run(*verify, "certificate.pem", cwd=pack).strip()
        signed = [self._verify_envelope(pack, "request", "vendor_keys")]
        signed.append(self._verify_envelope(pack, "approval-1", "approvers"))
        lines = (pack / "ledger.jsonl").read_bytes().splitlines()
        for before, after in itertools.pairwise(lines):
            (digest, _) = _run("sha256sum", cwd=pack, text=before).split()
            _expect(json.loads(after)["previous"] == digest, "the chain of ledger.jsonl is broken")
        rows = map(json.loads, (pack / f"{REPLICA}-queries.jsonl").read_text().splitlines())
        queries = Counter(row["query"] for row in rows if row["type"] == "QueryStart")
        expected = {QUERY: self._queries, **self._asked}
        _expect(queries == expected, f"expected {expected}, found {queries}")
        keys = ["--vendor-key", _public(self._vendor), "--approver-key", _public(self._approver)]
        printed = self._access("verify", str(pack), *keys)
        _expect(": OK\n" in printed, printed)
        return Step(
            "verified",
            f"sha256sum and openssl agree: {sums.count(': OK')} files, {certificate}, signatures of"
            f" {' and '.join(signed)}, {len(lines)} lines of the ledger in a chain, and each of the"
            f" {queries.total()} queries; so does `access verify`",
            f"{pack.name}/README.txt",
            {
                "files": sums.count(": OK"),
                "queries": queries.total(),
                "signed": signed,
                "printed": printed,
            },
        )

    def _verify_envelope(self, pack: Path, name: str, keys: str) -> str:
        """Verify a signature by the policy's first key with openssl; return the key's id."""
        (policy,) = pack.glob("policy-*.yaml")
        (key,) = yaml.safe_load(policy.read_text())[keys]
        raw = (pack / f"{name}.dsse.json").read_bytes()
        envelope = msgspec.json.decode(raw, type=Envelope)
        payload = base64.b64decode(envelope.payload)
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(key["ed25519"]))
        form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        checked = self._directory / "checked"  # not in the pack
        checked.mkdir(exist_ok=True)
        (checked / "key.pem").write_bytes(public.public_bytes(*form))
        (checked / "signed").write_bytes(encode_for_signing(envelope.payload_type, payload))
        (checked / "signature").write_bytes(base64.b64decode(envelope.signatures[0].sig))
        verify = ("openssl", "pkeyutl", "-verify", "-pubin", "-inkey", "key.pem", "-rawin")
        _run(*verify, "-in", "signed", "-sigfile", "signature", cwd=checked)
        return str(key["id"])

    # --- programs ---

    def _environ(self) -> dict[str, str]:
        return {
            "BYOC_ORGANIZATION_ID": ORGANIZATION,
            "BYOC_SERVICE_ID": SERVICE,
            "BYOC_REGION": "eu-central-1",
            "BYOC_REPLICA": "broker",
            "BYOC_STATE_DIR": str(self._directory / "state"),
            "BYOC_LISTEN": "127.0.0.1:0",
            "BYOC_ACCESS_POLICY_FILE": str(self._directory / "policy.yaml"),
            "BYOC_ACCESS_CA_DIR": str(self._directory / "authority"),
            "BYOC_ACCESS_SERVERS": f"{REPLICA}={self._route.server_url}",
            "BYOC_ACCESS_PASSWORD": self._password,
            "BYOC_ACCESS_EVENTS_URL": f"file://{self._directory / 'vendor'}",
        }

    def _access(self, *arguments: str, code: int = 0) -> str:
        """Run `byoc-agents access`; return its output. Raises DemoError for another exit code.

        It runs in this process, so that the measured times have no start of an interpreter.
        """
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            found = access_commands.main(arguments, self._environ())
        shown = f"byoc-agents access {' '.join(arguments)}: {out.getvalue()}{err.getvalue()}"
        _expect(found == code, shown)
        return out.getvalue().strip()

    def _wait_for(self, state: str, grant_id: str = GRANT) -> dict[str, Any]:
        """Return the event that the vendor was sent about this state. Raises DemoError."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            files = [one for one in (self._directory / "vendor").rglob("*") if one.is_file()]
            events = [json.loads(one.read_bytes())["data"] for one in files]
            events = [one for one in events if one["grant_id"] == grant_id]
            if found := [one for one in events if one["state"] == state]:
                return dict(found[0])
            _expect(time.monotonic() < deadline, f"no event {state}: {events}")
            time.sleep(POLL_SECONDS)

    def _ask(self, certificate: str, query: str = QUERY, **options: Any) -> dict[str, Any]:
        route = self._route
        text = query if "user" in options else f"{query}\n"
        given = {"certificate": certificate, "send": text, **options}
        return route.engineer.ask(route.address, route.port, **given)

    def _hold(self, certificate: str, **options: Any) -> AbstractContextManager[Held]:
        own = {"certificate": certificate, "timeout": SILENCE_SECONDS, **options}
        return self._route.engineer.hold(self._route.address, self._route.port, **own)

    def _ask_with(self, *certificates: str) -> dict[str, dict[str, Any]]:
        return {one or "none": self._ask(one) for one in certificates}

    def _connections(self) -> str:
        return self._route.log or RECORD


def _wait_for_refusal(held: Held, began: float) -> float:
    """Return the seconds until an open connection was refused. Raises DemoError."""
    while held.lines[-1].get("answer") != REFUSED:
        _expect("error" not in held.lines[-1], str(held.lines[-1]))
        _expect(time.monotonic() < began + END_SECONDS, "the open connection goes on")
        held.next()
    return float(held.lines[-1]["at"]) - began


def _wait_for_drop(native: Held) -> dict[str, Any]:
    """Return the error of a native session whose user was dropped. Raises DemoError."""
    ended = native.until_error()
    _expect("code 192" in ended["error"], str(ended))
    return ended


def _of_native(native: Held, ended: dict[str, Any], began: float) -> dict[str, Any]:
    seconds = ended["at"] - began
    return {"error": ended["error"], "seconds": seconds, "answers": len(native.lines) - 1}


def _wait_for_kill(running: "Future[dict[str, Any]]", began: float) -> float:
    """Return the seconds until a running query was cancelled. Raises DemoError."""
    found = running.result(timeout=END_SECONDS)
    _expect(found.get("answer") == CANCELLED, str(found))
    return float(found["at"]) - began


def _expect(condition: object, message: str) -> None:
    if not condition:
        raise DemoError(message)


def _run(*command: str, cwd: Path, text: bytes = b"") -> str:
    done = subprocess.run(
        command, cwd=cwd, input=text, capture_output=True, check=False, timeout=WAIT_SECONDS
    )
    _expect(done.returncode == 0, f"{' '.join(command)}: {(done.stdout + done.stderr).decode()}")
    return done.stdout.decode()


def _public(key: Ed25519PrivateKey) -> str:
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def _private(key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
