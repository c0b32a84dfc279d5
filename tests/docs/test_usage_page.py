"""The commands of docs/usage.md, run as written: with a ledger, with HTML, and against S3."""

import asyncio
import json
import os
import re
import shlex
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest

import byoc_agents
from lab.fakes.billing import ReplicaHistory, eventful, objects
from lab.fakes.s3 import FakeS3
from tests.unit.usage.test_usage_cli import kept_in

PAGE = (Path(byoc_agents.__file__).parents[2] / "docs" / "usage.md").read_text()
COMMANDS = [
    re.sub(r" {2,}#.*", "", line).strip()
    for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    for line in block.splitlines()
]
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-west-1"}


def test_the_page_has_one_command_per_source_and_form() -> None:
    assert [command.split()[:2] for command in COMMANDS] == [["byoc-agents", "usage"]] * 3


@pytest.mark.parametrize("command", COMMANDS)
async def test_a_command_succeeds_as_written(command: str, tmp_path: Path) -> None:
    messages = objects(eventful(ReplicaHistory(organization_id="ORG")))
    state_dir = await kept_in(tmp_path / "state", messages)
    async with FakeS3() as s3:
        s3.objects = {message.id: message.body for message in messages}
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        environ |= {"BYOC_STATE_DIR": str(state_dir), "AWS_ENDPOINT_URL_S3": s3.url, **KEYS}
        words = shlex.split(command)[1:]
        argv = [sys.executable, "-m", "byoc_agents.app.cli", *words]
        child = await asyncio.create_subprocess_exec(
            *argv, cwd=tmp_path, env=environ, stdout=PIPE, stderr=PIPE
        )
        out, err = await child.communicate()
    assert (child.returncode, err.decode()) == (0, "")
    if "--html" in words:
        assert "service-1" in (tmp_path / words[words.index("--html") + 1]).read_text()
    elif "--json" in words:
        assert json.loads(out)["records"] == 41
    else:
        assert "service-1" in out.decode()
