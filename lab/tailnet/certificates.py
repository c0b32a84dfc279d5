"""Certificates of the lab: of the servers, of the access authority and of engineers.

The access authority and the good certificate are made by the product's own code.
"""

import datetime as dt
import os
import shutil
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from byoc_agents.access.authority import (
    CERTIFICATE_FILE,
    Authority,
    create_authority,
    read_signing_request,
)
from lab.real.netlab.certificates import KEY_USAGES

GRANT = "0190a7c2-7e5b-7c3e-8d21-f0a4b6c8d9e0"
NAMES = ("r0.ch.svc-1.byoc", "metrics.svc-1.byoc", "api.svc-1.byoc")
AUTHORITY = "servers of the lab"
HOUR_MS = 3_600_000
NGINX_GROUP = 65532


def make(directory: Path, service: str, now: dt.datetime) -> None:
    """Write `server.crt`, `server.key`, `server-ca.crt`, and NAME.pem of each client.

    `good` is valid; `expired` ended a minute ago; `foreign` has the same name from an authority of
    the same title that is not the trusted one.
    """
    _make_server(directory, now)
    now_ms = int(now.timestamp() * 1000)
    for place, clients in (
        (directory / "authority", {"good": 2 * HOUR_MS, "expired": -60_000}),
        (directory / "foreign-authority", {"foreign": 2 * HOUR_MS}),
    ):
        place.mkdir()
        create_authority(place, service, now_ms - 3 * HOUR_MS)
        for name, until_ms in clients.items():
            pem = _client(Authority(place, service), now_ms - HOUR_MS, now_ms + until_ms)
            (directory / f"{name}.pem").write_bytes(pem)
    shutil.copy(directory / "authority" / CERTIFICATE_FILE, directory / "access-ca.crt")


def server_files(directory: Path) -> list[str]:
    """Return certificate, key and the authority of the clients, for the listener."""
    return [str(directory / name) for name in ("server.crt", "server.key", "access-ca.crt")]


def install(directory: Path, files: Path) -> None:
    """Copy what nginx needs to where the chart mounts it."""
    for target, source in (
        ("tls/tls.crt", "server.crt"),
        ("tls/tls.key", "server.key"),
        ("access-ca/ca.crt", "access-ca.crt"),
    ):
        path = files / target
        path.parent.mkdir(exist_ok=True)
        shutil.copy(directory / source, path)
        os.chown(path, 0, NGINX_GROUP)
        path.chmod(0o440)


def _client(authority: Authority, from_ms: int, until_ms: int) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    pem = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    signed = authority.sign(read_signing_request(pem), GRANT, from_ms, until_ms)
    return signed.pem.encode() + _private(key)


def _make_server(directory: Path, now: dt.datetime) -> None:
    root, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority = _signed(AUTHORITY, root.public_key(), root, now)
    leaf = _signed("server", key.public_key(), root, now, NAMES)
    (directory / "server-ca.crt").write_bytes(authority.public_bytes(Encoding.PEM))
    (directory / "server.crt").write_bytes(leaf.public_bytes(Encoding.PEM))
    (directory / "server.key").write_bytes(_private(key))


def _signed(
    subject: str,
    public: ec.EllipticCurvePublicKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    names: tuple[str, ...] = (),
) -> x509.Certificate:
    """Return a certificate; without names it is an authority's.

    It has every extension that Python 3.13 and newer require by default (RFC 5280).
    """
    builder = (
        x509.CertificateBuilder(_name(AUTHORITY), _name(subject), public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=not names, path_length=None), critical=True)
        .add_extension(_usage("digital_signature" if names else "key_cert_sign"), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if names:
        alternatives = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        builder = builder.add_extension(alternatives, critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _usage(allowed: str) -> x509.KeyUsage:
    return x509.KeyUsage(**{name: name == allowed for name in KEY_USAGES})


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
