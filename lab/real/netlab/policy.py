"""Render the customer's policies: `byoc-agents policy ...` for the settings of the pod."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import yaml

from lab.real.netlab.namespaces import PLANE_ADDRESS, S3_PREFIX, SQS_ADDRESS
from lab.real.netlab.pod import DAEMONS
from lab.real.parts.process import PartError

VPCE, ROLE = "vpce-0123456789abcdef0", "arn:aws:iam::000000000000:role/byoc-agents"
CIDRS = {"s3": S3_PREFIX, "sqs": f"{SQS_ADDRESS}/32", "control-plane": f"{PLANE_ADDRESS}/32"}


def network_policies(environment: Mapping[str, str], **cidrs: str) -> list[dict[str, Any]]:
    """Return the NetworkPolicy; `cidrs` limits it to the addresses of the names."""
    narrowed = [f"--cidr={name}={cidr}" for name, cidr in cidrs.items()]
    return rendered("networkpolicy", environment, *narrowed)


def bucket_policy(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the vendor's bucket policy for this endpoint and role."""
    (document,) = rendered("bucket-policy", environment, f"--vpce={VPCE}", f"--role={ROLE}")
    return document


def rendered(kind: str, environment: Mapping[str, str], *options: str) -> list[dict[str, Any]]:
    """Return the command's documents. Raises PartError."""
    command = [sys.executable, "-m", "byoc_agents.app.cli", "policy", kind, *DAEMONS, *options]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise PartError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr}")
    return [document for document in yaml.safe_load_all(done.stdout) if document]
