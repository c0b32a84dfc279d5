"""An emulated machine for arm64: Debian's kernel, with the files of an image in memory.

It has a serial console and no network, no disk and no folder in common with this machine. Its first
process, `lab/real/init.py`, runs commands as root and prints the result of each.
"""

import json
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lab.real.parts import install
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

EMULATOR = "usr/bin/qemu-system-aarch64"
HARDWARE = (
    *("-M", "virt", "-cpu", "cortex-a72", "-smp", "1", "-m", "1024"),
    *("-nographic", "-nodefaults", "-serial", "stdio", "-monitor", "none", "-nic", "none"),
    "-no-reboot",
)
KERNEL_OPTIONS = "console=ttyAMA0 quiet panic=-1"  # a panic ends the emulator
TIMEOUT_SECONDS = 300.0
SOURCES = "opt/lab"  # where Python finds this repository's `lab`
SEARCHED = ("/opt/byoc-agents/code", "/opt/byoc-agents/lib", f"/{SOURCES}")
FIRST_PROCESS = f"""#!/usr/bin/python3 -IS
import sys
sys.path[:0] = {SEARCHED!r}
from lab.real.init import main
main("/commands.json", {":".join(SEARCHED)!r})
"""
DEVICES = {"dev/console": (5, 1), "dev/null": (1, 3)}  # devices.txt of the kernel
MAGIC, END, ALIGNMENT_BYTES = "070701", "TRAILER!!!", 4  # buffer-format.rst of the kernel


class File(NamedTuple):
    """One entry of the root file system."""

    mode: int  # with the type
    data: bytes = b""  # of a link: its target
    device: tuple[int, int] = (0, 0)
    owner: tuple[int, int] = (0, 0)  # user, group


class Result(NamedTuple):
    """The end of one command."""

    code: int
    output: str
    error: str
    seconds: float

    def json(self) -> Any:
        """Return the JSON that it printed. Raises PartError if it failed."""
        if self.code:
            raise PartError(f"a command ended with {self.code} in the machine:\n{self.error}")
        return json.loads(self.output)


def run_commands(
    layout: Path, image: str, commands: Mapping[str, Sequence[str]]
) -> dict[str, Result]:
    """Boot an image of an OCI layout, run the commands in order, return the result of each.

    Raises PartError, with the end of the console, if the machine did not run all of them.
    """
    place, kernel = install.machine_emulator(), install.foreign_kernel()
    files = _image(layout, image) | _sources()
    files |= {"commands.json": File(stat.S_IFREG | 0o644, json.dumps(commands).encode())}
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory) / "root.cpio"
        with archive.open("wb") as file:
            file.writelines(_archived(files))
        program = [str(place / EMULATOR), "-L", str(place / "usr/share/qemu"), *HARDWARE]
        boot = ["-kernel", str(kernel), "-initrd", str(archive), "-append", KERNEL_OPTIONS]
        console = _run([*program, *boot], install.library_path(place))
    lines = [json.loads(line) for line in console.splitlines() if line.startswith('{"command":')]
    results = {str(line.pop("command")): Result(**line) for line in lines}
    if results.keys() != commands.keys():
        raise PartError(f"the machine ran {[*results]}, expected {[*commands]}:\n{console[-4000:]}")
    return results


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            command,
            env={"PATH": "/usr/bin", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as late:
        console = (late.stdout or b"").decode(errors="replace")[-4000:]
        raise PartError(f"the machine ran for {TIMEOUT_SECONDS:.0f} s:\n{console}") from None
    return done.stdout.decode(errors="replace")


def _image(layout: Path, image: str) -> dict[str, File]:
    """Return the files of an image, from its layers."""
    found = json.loads((layout / "manifest.json").read_bytes())
    (layers,) = [one["Layers"] for one in found if image in one["RepoTags"]]
    files: dict[str, File] = {}
    for layer in layers:
        with tarfile.open(layout / layer) as archive:
            files |= {member.name: _member(archive, member) for member in archive}
    return files


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    owner = (member.uid, member.gid)
    if member.isdir():
        return File(stat.S_IFDIR | member.mode, owner=owner)
    if member.issym():
        return File(stat.S_IFLNK | 0o777, member.linkname.encode())
    data = archive.extractfile(member)
    assert data, f"{member.name}: expected a file, a folder or a link"
    return File(stat.S_IFREG | member.mode, data.read(), owner=owner)


def _sources() -> dict[str, File]:
    """Return the first process, `lab`, and the folders and devices that no image has."""
    files = {
        f"{SOURCES}/{path.relative_to(ROOT)}": File(stat.S_IFREG | 0o644, path.read_bytes())
        for path in (ROOT / "lab").rglob("*.py")
    }
    files |= {name: File(stat.S_IFCHR | 0o666, device=both) for name, both in DEVICES.items()}
    files["init"] = File(stat.S_IFREG | 0o755, FIRST_PROCESS.encode())
    parents = {str(parent) for name in files for parent in Path(name).parents[:-1]}
    folders = parents | {"proc", "sys", "tmp"}
    return {name: File(stat.S_IFDIR | 0o755) for name in folders} | files


def _archived(files: Mapping[str, File]) -> Iterator[bytes]:
    """Give a cpio archive in the format `newc`, as the kernel reads it; parents come first."""
    entries = [*sorted(files.items()), (END, File(0))]
    for inode, (name, file) in enumerate(entries, start=1):
        encoded = name.encode() + b"\0"
        numbers = (inode, file.mode, *file.owner, 1, 0, len(file.data), 0, 0, *file.device)
        fields = (*numbers, len(encoded), 0)
        header = (MAGIC + "".join(f"{number:08x}" for number in fields)).encode() + encoded
        for part in (header, file.data):
            yield part + bytes(-len(part) % ALIGNMENT_BYTES)
