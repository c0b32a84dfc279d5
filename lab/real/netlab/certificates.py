"""Make a CA for BYOC_CA_FILE, and one certificate for every name of the lab."""

import datetime as dt
import ssl
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from cryptography.x509.oid import NameOID

KEY_USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
    *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)


def authority(
    directory: Path, names: Sequence[str], asked: list[str | None]
) -> tuple[Path, ssl.SSLContext]:
    """Return the CA's PEM file and a server's context for all the names.

    Each handshake appends the client's SNI to `asked`.
    """
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    root = _issued("byoc lab CA", root_key.public_key(), root_key, "byoc lab CA", [])
    leaf = _issued("byoc lab", key.public_key(), root_key, "byoc lab CA", names)
    ca, pem = directory / "ca.pem", directory / "server.pem"
    ca.write_bytes(root.public_bytes(Encoding.PEM))
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, serialization.NoEncryption())
    pem.write_bytes(leaf.public_bytes(Encoding.PEM) + private)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    context.sni_callback = lambda _socket, name, _context: asked.append(name)
    return ca, context


def _issued(
    subject: str,
    public: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    issuer: str,
    names: Sequence[str],
) -> x509.Certificate:
    """Return a certificate; without names it is a CA's."""
    now, is_ca = dt.datetime.now(dt.UTC), not names
    uses = {"key_cert_sign", "crl_sign"} if is_ca else {"digital_signature"}
    usage = x509.KeyUsage(**{name: name in uses for name in KEY_USAGES})
    own = x509.SubjectKeyIdentifier.from_public_key(public)
    theirs = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
    builder = (
        x509.CertificateBuilder(_name(issuer), _name(subject), public, x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(own, critical=False)
        .add_extension(theirs, critical=False)
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])
