"""The chart is packaged with a provenance file that `helm verify` checks without a network."""

import subprocess
from pathlib import Path

import pytest

from byoc_agents import __version__
from lab.real.chart import render
from lab.real.parts import helm
from lab.real.parts.process import PartError

OWNER = "Chart Test <chart@example.com>"
by_version = pytest.mark.parametrize("version", helm.VERSIONS)


def gpg(home: Path, *arguments: str) -> bytes:
    """Run gpg with a home of its own. Raises PartError if it fails."""
    command = ["gpg", "--homedir", str(home), "--batch", "--passphrase", "", *arguments]
    done = subprocess.run(command, capture_output=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise PartError(f"gpg {arguments[0]} ended with {done.returncode}: {done.stderr.decode()}")
    return done.stdout


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a key pair, in the form of RELEASE.md: `secret.gpg` and `public.gpg`."""
    place = tmp_path_factory.mktemp("k")
    home = place / "h"
    home.mkdir(mode=0o700)
    try:
        gpg(home, "--quick-generate-key", OWNER, "rsa3072", "sign", "never")
        (place / "secret.gpg").write_bytes(gpg(home, "--export-secret-keys"))
        (place / "public.gpg").write_bytes(gpg(home, "--export"))
        gpg(home, "--quick-generate-key", "Somebody Else <else@example.com>", "rsa3072", "sign")
        (place / "other.gpg").write_bytes(gpg(home, "--export", "else@example.com"))
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=True)
    return place


def package(version: str, keys: Path, target: Path) -> Path:
    """Package and sign as the release does."""
    sign = ("--sign", "--key", "Chart Test", "--keyring", str(keys / "secret.gpg"))
    done = render.run(version, "package", str(render.CHART), "--destination", str(target), *sign)
    assert done.returncode == 0, done.stderr
    return target / f"byoc-agents-{__version__}.tgz"


def verify(version: str, archive: Path, keyring: Path) -> subprocess.CompletedProcess[str]:
    return render.run(version, "verify", "--keyring", str(keyring), str(archive))


@by_version
def test_a_signed_chart_is_verified_offline(version: str, keys: Path, tmp_path: Path) -> None:
    archive = package(version, keys, tmp_path)
    done = verify(version, archive, keys / "public.gpg")
    assert done.returncode == 0, done.stderr
    assert f"Signed by: {OWNER}" in done.stdout


@by_version
def test_a_changed_byte_of_the_chart_is_found(version: str, keys: Path, tmp_path: Path) -> None:
    archive = package(version, keys, tmp_path)
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 1
    archive.write_bytes(data)
    done = verify(version, archive, keys / "public.gpg")
    assert done.returncode != 0
    assert "sha256 sum does not match" in done.stderr


@by_version
def test_a_changed_byte_of_the_provenance_is_found(
    version: str, keys: Path, tmp_path: Path
) -> None:
    archive = package(version, keys, tmp_path)
    provenance = archive.with_name(f"{archive.name}.prov")
    provenance.write_text(provenance.read_text().replace("name: byoc-agents", "name: byoc-agentz"))
    assert verify(version, archive, keys / "public.gpg").returncode != 0


@by_version
def test_the_key_of_somebody_else_verifies_nothing(
    version: str, keys: Path, tmp_path: Path
) -> None:
    archive = package(version, keys, tmp_path)
    assert verify(version, archive, keys / "other.gpg").returncode != 0
