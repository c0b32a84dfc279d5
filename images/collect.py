"""Copies from a base image what Python needs to run, and nothing else.

`python collect.py BASE ROOT PACKAGES EXTENSIONS` reads the files of an image at BASE, which may be
of another architecture, and writes to ROOT the interpreter, the standard library without its
installers and tests, and the shared libraries that these and the modules below EXTENSIONS name.
The file PACKAGES (JSON) lists where they come from:
`[{"name": "libc6", "version": "2.36-9", "distribution": "debian-12", "source": "glibc"}, ...]`.
"""

import json
import platform
import re
import shutil
import struct
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

PYTHON = Path(sys.executable).resolve()  # the target's is at the same place
STDLIB = Path(sysconfig.get_path("stdlib"))
LOADED_BY_NAME = ("libgcc_s.so.1",)  # glibc opens it when a thread ends
# Not needed by a program that runs: installers, tests, windows, editors, other formats of packages
LEFT_OUT = shutil.ignore_patterns(
    *("__pycache__", "site-packages", "dist-packages", "ensurepip", "venv", "config-*", "*.a"),
    *("test", "tests", "idlelib", "tkinter", "turtle*", "lib2to3", "distutils", "pydoc*"),
    *("EXTERNALLY-MANAGED", "sitecustomize.py", "_tkinter*", "_test*", "_xx*", "xx*"),
    *("_ctypes_test*", "_curses*", "antigravity*", "ossaudiodev*", "spwd*"),
    *("readline*", "_dbm*", "_gdbm*", "nis.*", "_crypt*"),
)
LIBRARY_FOLDERS = ("lib", "usr/lib", "usr/local/lib")
IDENTITY = {  # what the names of users, hosts and trust are looked up in
    "etc/passwd": "root:x:0:0:root:/:/nonexistent\nbyoc:x:65532:0:byoc-agents:/:/nonexistent\n",
    "etc/group": "root:x:0:\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
DT_NEEDED, DT_STRTAB = 1, 5


class Elf:
    """The libraries and the loader that one ELF file names; 64 bits, little endian."""

    def __init__(self, data: bytes) -> None:
        self.needed: list[str] = []
        self.loader = ""
        (start,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        headers = [struct.unpack_from("<IIQQQQ", data, start + size * i) for i in range(count)]
        loads = [(h[3], h[2], h[5]) for h in headers if h[0] == PT_LOAD]
        for kind, _, offset, _, _, length in headers:
            if kind == PT_INTERP:
                self.loader = data[offset : offset + length].rstrip(b"\0").decode()
            if kind == PT_DYNAMIC:
                pairs = list(struct.iter_unpack("<QQ", data[offset : offset + length]))
                address = next(value for tag, value in pairs if tag == DT_STRTAB)
                names = next(address - at + o for at, o, n in loads if at <= address < at + n)
                for name in (names + value for tag, value in pairs if tag == DT_NEEDED):
                    self.needed.append(data[name : data.index(b"\0", name)].decode())


class Base:
    """The files of a base image, with symbolic links read as its own root would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folders = [root / name for name in ("lib", "usr/lib") if not (root / name).is_symlink()]
        found = {p.parent.name for each in folders for p in each.glob("*-linux-gnu/libc.so.6")}
        (self.triplet,) = found

    def resolve(self, path: str) -> Path | None:
        """Return the file at an absolute path of the image, None if there is none."""
        current, parts = Path("/"), list(Path(path).parts[1:])
        for _ in range(100):
            if not parts:
                break
            part = parts.pop(0)
            here = self.root / (current / part).relative_to("/")
            if part == "..":
                current = current.parent
            elif here.is_symlink():
                link = here.readlink()
                parts = [*link.parts, *parts]
                if link.is_absolute():
                    current, parts = Path("/"), parts[1:]
            else:
                current /= part
        found = self.root / current.relative_to("/")
        return found if found.exists() and not parts else None

    def library(self, name: str) -> Path:
        """Return the file of a shared library. Raises SystemExit if the base lacks it."""
        for folder in LIBRARY_FOLDERS:
            for place in (f"{folder}/{self.triplet}", folder):
                if found := self.resolve(f"/{place}/{name}"):
                    return found
        raise SystemExit(f"{name}: expected in the base image, among its libraries")


def collect(base: Base, root: Path, extensions: list[Path]) -> list[Path]:
    """Copy everything, return the files of the base that were taken."""
    if base.resolve(str(PYTHON)) is None:
        raise SystemExit(f"{PYTHON}: expected in the base image, as in the builder's")
    python, library = root / PYTHON.relative_to("/"), root / STDLIB.relative_to("/")
    python.parent.mkdir(parents=True)
    shutil.copyfile(base.root / PYTHON.relative_to("/"), python)
    python.chmod(0o755)
    (python.parent / "python3").symlink_to(PYTHON.name)
    shutil.copytree(base.root / STDLIB.relative_to("/"), library, ignore=LEFT_OUT, symlinks=True)
    files = [python, *library.rglob("*.py"), *library.rglob("*.so")]
    users = [python, *library.rglob("*.so"), *extensions]
    taken = [base.root / file.relative_to(root) for file in files]
    return [*taken, *copy_libraries(base, root, users)]


def copy_libraries(base: Base, root: Path, users: list[Path]) -> Iterator[Path]:
    """Copy the loader and all libraries that these files need, to where the loader looks first."""
    folder = root / "usr/lib" / base.triplet
    folder.mkdir(parents=True, exist_ok=True)
    (root / "lib").symlink_to("usr/lib")
    loader = Elf(users[0].read_bytes()).loader
    waiting = sorted({name for user in users for name in Elf(user.read_bytes()).needed})
    waiting += [*LOADED_BY_NAME, Path(loader).name]
    known = set[str]()
    while waiting:
        if (name := waiting.pop()) not in known:
            known.add(name)
            source = base.library(name)
            shutil.copyfile(source, folder / name)
            (folder / name).chmod(0o755)
            waiting += Elf(source.read_bytes()).needed
            yield source
    place = root / loader.lstrip("/")  # /lib64/NAME on amd64, /lib/NAME on arm64
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(f"/usr/lib/{base.triplet}/{place.name}")


def packages(base: Base, files: list[Path]) -> list[dict[str, str]]:
    """Return the packages of the base that own these files, and Python if none does."""
    release = dict(re.findall(r'^(\w+)="?(.*?)"?$', os_release(base).read_text(), re.MULTILINE))
    wanted = {str(file.relative_to(base.root)).removeprefix("usr/") for file in files}
    owners = {
        listing.name.removesuffix(".list").split(":")[0]: owned
        for listing in sorted((base.root / "var/lib/dpkg/info").glob("*.list"))
        if (
            owned := wanted
            & {line.strip("/").removeprefix("usr/") for line in listing.read_text().splitlines()}
        )
    }
    distribution = f"{release['ID']}-{release['VERSION_ID']}"
    found = []
    for text in (base.root / "var/lib/dpkg/status").read_text().split("\n\n"):
        field = dict(re.findall(r"^([\w-]+): (.*)$", text, re.MULTILINE))
        if field.get("Package") in owners:
            about = {"name": field["Package"], "version": field["Version"]}
            source = (field.get("Source") or field["Package"]).split()[0]
            found.append(about | {"distribution": distribution, "source": source})
    if left := wanted - set[str]().union(*owners.values()):
        if any(not name.startswith("local/") for name in left):
            raise SystemExit(f"{sorted(left)[:5]}: expected a package that owns each file")
        version = platform.python_version()
        found.append({"name": "python", "version": version, "distribution": "", "source": "python"})
    return sorted(found, key=lambda package: package["name"])


def os_release(base: Base) -> Path:
    """Return the file that says which distribution the base is."""
    file = base.resolve("/etc/os-release")
    if file is None:
        raise SystemExit("/etc/os-release: expected in the base image")
    return file


def main(source: str, target: str, listing: str, extensions: str) -> None:
    """Write the root and the list."""
    base, root = Base(Path(source)), Path(target)
    files = collect(base, root, sorted(Path(extensions).rglob("*.so")))
    (root / "etc").mkdir()
    for name, text in (IDENTITY | {"etc/os-release": os_release(base).read_text()}).items():
        (root / name).write_text(text)
    Path(listing).write_text(json.dumps(packages(base, [*files, os_release(base)]), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
