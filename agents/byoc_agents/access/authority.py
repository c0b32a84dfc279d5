"""The certificate authority of one service: it signs an engineer's key for the time of a grant.

The engineer sends a certificate signing request. Only its key is used: names and extensions of the
request are ignored. The certificate has one name, `spiffe://SERVICE.byoc/grant/ID`, and an empty
subject. The CA is constrained to such names (RFC 5280, 4.2.1.10), so its stolen key is of no use
for another service or another user. The broker never has the engineer's private key.
"""

import datetime as dt
import ipaddress
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from byoc_agents.access.documents import sha256
from byoc_agents.access.errors import AuthorityError
from byoc_agents.app.files import MAX_SECRET_BYTES, read_within

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519

CERTIFICATE_FILE, KEY_FILE = "access-ca.crt", "access-ca.key"
CA_DAYS = 365
BACKDATED_SECONDS = 60  # for servers whose clock is behind
DNS_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


class SigningRequest(NamedTuple):
    """The key that an engineer asks to be signed."""

    public_key: "ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey"
    sha256: str  # of the key's SubjectPublicKeyInfo in DER


class GrantCertificate(NamedTuple):
    """A signed certificate."""

    pem: str
    serial: str  # hexadecimal
    sha256: str  # of the certificate in DER, which is its fingerprint


def host_of_service(service_id: str) -> str:
    """Return the host of the URIs of a service. Raises AuthorityError.

    A URI constraint compares host names (RFC 5280), so the service must be a DNS label.
    """
    label = service_id.lower()
    if not DNS_LABEL.fullmatch(label):
        expected = "expected letters, digits and hyphens only"
        raise AuthorityError(f"the service {service_id!r} is not a host name: {expected}")
    return f"{label}.byoc"


def uri_of_grant(service_id: str, grant_id: str) -> str:
    """Return the only name of a grant's certificate. Raises AuthorityError."""
    return f"spiffe://{host_of_service(service_id)}/grant/{grant_id}"


def read_signing_request(pem: str) -> SigningRequest:
    """Return the key of a CSR in PEM. Raises AuthorityError.

    Its own signature must be valid: the sender has the private key. P-256 and Ed25519 are allowed.
    """
    from cryptography import x509  # noqa: PLC0415  12 MiB, only in the broker
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
        Encoding,
        PublicFormat,
    )

    expected = "expected a certificate signing request in PEM with a P-256 or Ed25519 key"
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        key, valid = request.public_key(), request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature):
        raise AuthorityError(f"the CSR cannot be read: {expected}") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError(f"the CSR has a key of the curve {key.curve.name}: {expected}")
    if not isinstance(key, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey):
        raise AuthorityError(f"the CSR has another kind of key: {expected}")
    if not valid:
        raise AuthorityError(f"the CSR is not signed by its own key: {expected}")
    content = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return SigningRequest(key, sha256(content))


class Authority:
    """The CA in one directory: `access-ca.crt` and `access-ca.key`, read at each use.

    So a rotated Secret is used at once, and a missing one is an error of that grant only.
    """

    def __init__(self, directory: Path, service_id: str) -> None:
        self._directory = directory
        self._service_id = service_id

    def sign(
        self, request: SigningRequest, grant_id: str, not_before_ms: int, not_after_ms: int
    ) -> GrantCertificate:
        """Return a certificate for these milliseconds. Blocks. Raises AuthorityError."""
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives import hashes  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import Encoding  # noqa: PLC0415

        issuer, key = self._load()
        starts = _moment(not_before_ms) - dt.timedelta(seconds=BACKDATED_SECONDS)
        ends = _moment(not_after_ms)
        if ends > issuer.not_valid_after_utc:
            end = issuer.not_valid_after_utc.isoformat()
            raise AuthorityError(f"the CA ends at {end}, before the grant: expected a new CA")
        extended = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH])
        name = x509.UniformResourceIdentifier(uri_of_grant(self._service_id, grant_id))
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(request.public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(starts, issuer.not_valid_before_utc))
            .not_valid_after(ends)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(extended, critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
        )
        made = builder.sign(key, hashes.SHA256())
        content = made.public_bytes(Encoding.DER)
        pem = made.public_bytes(Encoding.PEM).decode()
        return GrantCertificate(pem, f"{made.serial_number:x}", sha256(content))

    def check(self) -> None:
        """Raise AuthorityError if the CA cannot sign. Blocks."""
        self._load()

    def _load(self) -> "tuple[x509.Certificate, ec.EllipticCurvePrivateKey]":
        from cryptography import x509  # noqa: PLC0415
        from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
        from cryptography.hazmat.primitives.serialization import (  # noqa: PLC0415
            load_pem_private_key,
        )

        expected = f"expected {CERTIFICATE_FILE} and {KEY_FILE} of this service"
        try:
            names = (CERTIFICATE_FILE, KEY_FILE)
            files = [read_within(str(self._directory / n), MAX_SECRET_BYTES) for n in names]
            issuer = x509.load_pem_x509_certificate(files[0])
            key = load_pem_private_key(files[1], password=None)
        except (OSError, ValueError, TypeError) as error:
            why = type(error).__name__
            raise AuthorityError(f"{self._directory}: {why}: {expected}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise AuthorityError(f"{self._directory}: another kind of key: {expected}")
        if key.public_key() != issuer.public_key():
            raise AuthorityError(f"{self._directory}: the key is not that of the certificate")
        if not _is_constrained_to(issuer, host_of_service(self._service_id)):
            reason = f"not constrained to the service {self._service_id}"
            raise AuthorityError(f"{self._directory}: {reason}: {expected}")
        return issuer, key


def create_authority(directory: Path, service_id: str, now_ms: int) -> None:
    """Write a new CA for one service into an existing directory. Raises AuthorityError.

    Existing files are never replaced: certificates of an open grant depend on them.
    """
    from cryptography import x509  # noqa: PLC0415
    from cryptography.hazmat.primitives import hashes, serialization  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415

    key = ec.generate_private_key(ec.SECP256R1())
    title = f"byoc access of {service_id}"
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, title[:64])])
    starts = _moment(now_ms) - dt.timedelta(seconds=BACKDATED_SECONDS)
    # RFC 5280 leaves a kind of name without a constraint unlimited: each gets one that no name of
    # use satisfies. An empty subtree has all names of its kind. E-mail has no such subtree, so one
    # host that never exists (RFC 6761) is permitted instead.
    constraints = x509.NameConstraints(
        permitted_subtrees=[
            x509.UniformResourceIdentifier(host_of_service(service_id)),
            x509.RFC822Name("nobody.invalid"),
        ],
        excluded_subtrees=[
            x509.DNSName(""),
            x509.DirectoryName(x509.Name([])),  # a subject: a common name could name a user
            x509.IPAddress(ipaddress.ip_network("0.0.0.0/0")),
            x509.IPAddress(ipaddress.ip_network("::/0")),
        ],
    )
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(starts)
        .not_valid_after(starts + dt.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(key_cert_sign=True), critical=True)
        .add_extension(constraints, critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _write_new(directory / KEY_FILE, private, 0o600)
    certificate = made.public_bytes(serialization.Encoding.PEM)
    _write_new(directory / CERTIFICATE_FILE, certificate, 0o644)


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = error.strerror or type(error).__name__
        expected = "expected a writable directory without a CA"
        raise AuthorityError(f"{path}: {why}: {expected}") from None


def _is_constrained_to(issuer: "x509.Certificate", host: str) -> bool:
    from cryptography import x509  # noqa: PLC0415

    try:
        found = issuer.extensions.get_extension_for_class(x509.NameConstraints)
        basic = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    permitted = found.value.permitted_subtrees or []
    uris = [p.value for p in permitted if isinstance(p, x509.UniformResourceIdentifier)]
    return basic.ca and found.critical and uris == [host]


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> "x509.KeyUsage":
    from cryptography import x509  # noqa: PLC0415

    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _moment(milliseconds: int) -> dt.datetime:
    """Return whole seconds, which is all that a certificate has."""
    return dt.datetime.fromtimestamp(milliseconds // 1000, tz=dt.UTC)
