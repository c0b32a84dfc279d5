"""The webhook's token as the documentation makes it, and one that ends with a newline."""

import asyncio
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.real.alerts_lab import AM_CONFIG, HOOK, control_plane, daemon, raise_alert
from lab.real.parts import install
from lab.real.parts.process import RealProcess

Started = Callable[[str], RealProcess]
RECIPE = re.compile(r"^printf .* > webhook-token", re.MULTILINE)
OPERATOR = "credentials: {text}"  # the operator copies the secret's text as it is
FILE = "credentials_file: {file}"


def of_the_recipe(directory: Path) -> Path:
    """Make the file as docs/install-kubernetes.md says."""
    (command,) = RECIPE.findall((install.ROOT / "docs" / "install-kubernetes.md").read_text())
    subprocess.run(["sh", "-ec", command], cwd=directory, check=True)
    return directory / "webhook-token"


def with_a_newline(directory: Path) -> Path:
    """Make the file with `echo`."""
    file = directory / "webhook-token"
    file.write_text("text-of-the-token\n")
    return file


@pytest.mark.parametrize(
    ("make", "given"),
    [(of_the_recipe, OPERATOR), (of_the_recipe, FILE), (with_a_newline, FILE)],
    ids=["recipe, operator", "recipe, file", "newline, file"],
)
async def test_alertmanager_is_let_in(
    make: Callable[[Path], Path], given: str, alertmanager: Started, tmp_path: Path
) -> None:
    file = await asyncio.to_thread(make, tmp_path)
    text = await asyncio.to_thread(file.read_text)
    settings = {"BYOC_ALERTS_WEBHOOK_TOKEN": "", "BYOC_ALERTS_WEBHOOK_TOKEN_FILE": str(file)}
    async with (
        control_plane() as plane,
        daemon(plane.url, tmp_path, **settings) as forwarder,
    ):
        config = AM_CONFIG.format(port=forwarder.webhook_port, hook=HOOK)
        own = given.format(text=repr(text), file=file)
        sender = alertmanager(config.replace(f"credentials: {HOOK}", own))
        await raise_alert(sender, "A")
        await plane.until(plane.delivered)
    assert plane.delivered() == [("A", "firing")]
