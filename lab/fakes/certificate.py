"""Make a self-signed certificate for 127.0.0.1, for servers in tests."""

import subprocess
from pathlib import Path


def certificate(directory: Path, name: str) -> tuple[Path, Path]:
    """Make NAME.crt and NAME.key, valid for a day; the certificate is its own CA."""
    cert, key = directory / f"{name}.crt", directory / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-nodes", "-days", "1", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )  # fmt: skip
    return cert, key
