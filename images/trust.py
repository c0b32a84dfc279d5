"""Writes the CAs that an image trusts: `python images/trust.py system|amazon TARGET`.

`system` is all of the builder's store; `amazon` only the roots of Amazon Trust Services, which
sign AWS's endpoints and ACM's certificates: a control plane with another CA needs BYOC_CA_FILE.
"""

import ssl
import sys
from pathlib import Path
from typing import Any

# Subjects' organization and start of the name: https://www.amazontrust.com/repository/
AMAZON = (("Amazon", "Amazon Root CA"), ("Starfield Technologies, Inc.", "Starfield Services Root"))


def bundle(choice: str) -> str:
    """Return PEM. Raises SystemExit where nothing is left to trust."""
    context = ssl.create_default_context()
    names: list[Any] = [ca["subject"] for ca in context.get_ca_certs()]
    subjects = [dict(part[0] for part in subject) for subject in names]
    certificates = context.get_ca_certs(binary_form=True)
    chosen = [
        ssl.DER_cert_to_PEM_cert(der)
        for subject, der in zip(subjects, certificates, strict=True)
        if choice == "system" or _amazons(subject)
    ]
    if choice not in {"system", "amazon"} or not chosen:
        raise SystemExit(f"TRUST={choice}: expected system or amazon, and a store with CAs in it")
    return "".join(chosen)


def _amazons(subject: dict[str, str]) -> bool:
    names = subject.get("organizationName", ""), subject.get("commonName", "")
    return any(names[0] == own and names[1].startswith(start) for own, start in AMAZON)


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(bundle(sys.argv[1]))
