"""The certificate authority, checked by OpenSSL."""

import datetime as dt
import ipaddress
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.access.authority import (
    CERTIFICATE_FILE,
    KEY_FILE,
    Authority,
    GrantCertificate,
    create_authority,
    read_signing_request,
    uri_of_grant,
)
from byoc_agents.access.errors import AuthorityError
from lab.fakes.core import START_MS
from tests.unit.access.access_documents import ENGINEER, GRANT_ID, HOUR_MS, VENDOR, csr_of

COMMON_NAME = x509.NameAttribute(x509.NameOID.COMMON_NAME, "default")
URI = f"spiffe://svc-1.byoc/grant/{GRANT_ID}"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    create_authority(tmp_path, "svc-1", START_MS)
    return tmp_path


def signed(directory: Path, *, service: str = "svc-1", csr: str = "") -> GrantCertificate:
    request = read_signing_request(csr or csr_of())
    authority = Authority(directory, service)
    return authority.sign(request, GRANT_ID, START_MS, START_MS + HOUR_MS)


def openssl(directory: Path, pem: str, *, at_ms: int = START_MS) -> str:
    """Return OpenSSL's verdict about a client certificate at a time."""
    leaf = directory / "leaf.pem"
    leaf.write_text(pem)
    command = ["openssl", "verify", "-CAfile", str(directory / CERTIFICATE_FILE)]
    command += ["-purpose", "sslclient", "-attime", str(at_ms // 1000), str(leaf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    return done.stdout + done.stderr


def forged(directory: Path, *names: x509.GeneralName, common_name: str = "") -> str:
    """Return a certificate that somebody with the CA's key could make."""
    key = load_pem_private_key((directory / KEY_FILE).read_bytes(), None)
    issuer = x509.load_pem_x509_certificate((directory / CERTIFICATE_FILE).read_bytes())
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    attributes = [x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)] if common_name else []
    start = dt.datetime.fromtimestamp(START_MS / 1000, tz=dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(attributes))
        .issuer_name(issuer.subject)
        .public_key(ENGINEER.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(Encoding.PEM).decode()


@pytest.mark.parametrize("key", [ENGINEER, VENDOR], ids=["P-256", "Ed25519"])
def test_openssl_accepts_the_certificate_for_its_time_only(directory: Path, key: Any) -> None:
    pem = signed(directory, csr=csr_of(key)).pem
    assert openssl(directory, pem).endswith("leaf.pem: OK\n")
    assert openssl(directory, pem, at_ms=START_MS + HOUR_MS - 1000).endswith("leaf.pem: OK\n")
    assert "certificate has expired" in openssl(directory, pem, at_ms=START_MS + HOUR_MS + 1000)
    assert "not yet valid" in openssl(directory, pem, at_ms=START_MS - 61_000)


def test_the_certificate_has_one_uri_an_empty_subject_and_the_engineers_key(
    directory: Path,
) -> None:
    made = signed(directory)
    found = x509.load_pem_x509_certificate(made.pem.encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert list(names.value) == [x509.UniformResourceIdentifier(URI)]
    assert (names.critical, list(found.subject)) == (True, [])
    assert found.public_key() == ENGINEER.public_key()
    assert made.sha256 == found.fingerprint(hashes.SHA256()).hex()
    assert int(made.serial, 16) == found.serial_number
    assert uri_of_grant("SVC-1", GRANT_ID) == URI


def test_a_server_would_not_accept_it_as_a_server(directory: Path) -> None:
    pem = directory / "leaf.pem"
    pem.write_text(signed(directory).pem)
    command = ["openssl", "verify", "-CAfile", str(directory / CERTIFICATE_FILE), "-attime"]
    command += [str(START_MS // 1000), "-purpose", "sslserver", str(pem)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert "unsuitable certificate purpose" in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("names", "verdict"),
    [
        ([x509.UniformResourceIdentifier(URI)], "OK"),
        ([x509.UniformResourceIdentifier(URI.replace("svc-1", "svc-2"))], "permitted subtree"),
        ([x509.DNSName("db.customer.example")], "excluded subtree"),
        ([x509.RFC822Name("anna@customer.example")], "permitted subtree"),
        ([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))], "excluded subtree"),
        ([x509.IPAddress(ipaddress.ip_address("::1"))], "excluded subtree"),
        ([x509.DirectoryName(x509.Name([COMMON_NAME]))], "excluded subtree"),
    ],
)
def test_a_stolen_ca_key_makes_certificates_of_this_service_only(
    directory: Path, names: list[x509.GeneralName], verdict: str
) -> None:
    assert verdict in openssl(directory, forged(directory, *names))


def test_a_stolen_ca_key_makes_no_certificate_with_a_common_name(directory: Path) -> None:
    pem = forged(directory, x509.UniformResourceIdentifier(URI), common_name="default")
    assert "excluded subtree" in openssl(directory, pem)


def test_names_and_extensions_of_the_csr_are_ignored(directory: Path) -> None:
    asked = [x509.DNSName("db.customer.example"), x509.UniformResourceIdentifier("spiffe://x/y")]
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([COMMON_NAME]))
        .add_extension(x509.SubjectAlternativeName(asked), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=9), critical=True)
        .sign(ENGINEER, hashes.SHA256())
    )
    made = signed(directory, csr=csr.public_bytes(Encoding.PEM).decode())
    found = x509.load_pem_x509_certificate(made.pem.encode())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(URI)]
    assert found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(found.subject) == []


def refusal(csr: str) -> str:
    with pytest.raises(AuthorityError) as caught:
        read_signing_request(csr)
    return str(caught.value)


def test_another_key_than_p256_or_ed25519_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    assert "curve secp384r1" in refusal(csr_of(other))
    assert "another kind of key" in refusal(csr_of(rsa.generate_private_key(65537, 2048)))


def test_a_csr_that_its_own_key_has_not_signed_is_refused() -> None:
    request = x509.load_pem_x509_csr(csr_of().encode())
    raw = bytearray(request.public_bytes(Encoding.DER))
    raw[-1] ^= 1
    changed = x509.load_der_x509_csr(bytes(raw)).public_bytes(Encoding.PEM).decode()
    assert "not signed by its own key" in refusal(changed)


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda raw: csr_of()[:60] + raw.hex()))
def test_any_text_is_refused_as_a_csr(text: str) -> None:
    assert "cannot be read" in refusal(text)


def test_a_ca_that_cannot_be_used_is_an_error(directory: Path, tmp_path: Path) -> None:
    def mistake(where: Path, service: str = "svc-1") -> str:
        with pytest.raises(AuthorityError) as caught:
            Authority(where, service).check()
        return str(caught.value)

    Authority(directory, "svc-1").check()
    assert "FileNotFoundError: expected access-ca.crt" in mistake(tmp_path / "missing")
    assert "not constrained to the service svc-2" in mistake(directory, "svc-2")
    assert "'a_b' is not a host name" in mistake(directory, "a_b")
    other = tmp_path / "other"
    other.mkdir()
    create_authority(other, "svc-1", START_MS)
    shutil.copy(directory / CERTIFICATE_FILE, other)
    assert "the key is not that of the certificate" in mistake(other)
    (other / KEY_FILE).write_text("nothing")
    assert "ValueError" in mistake(other)


def test_nothing_is_signed_beyond_the_end_of_the_ca(directory: Path) -> None:
    authority, request = Authority(directory, "svc-1"), read_signing_request(csr_of())
    late = START_MS + 365 * 24 * HOUR_MS
    with pytest.raises(AuthorityError, match="expected a new CA"):
        authority.sign(request, GRANT_ID, late - HOUR_MS, late)


def test_a_new_ca_never_replaces_one(directory: Path) -> None:
    before = (directory / KEY_FILE).read_bytes()
    with pytest.raises(AuthorityError, match="expected a writable directory without a CA"):
        create_authority(directory, "svc-1", START_MS)
    assert (directory / KEY_FILE).read_bytes() == before
    assert (directory / KEY_FILE).stat().st_mode & 0o777 == 0o600
