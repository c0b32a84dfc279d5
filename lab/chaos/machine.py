"""The simulated node: the disk of the state directory and the clock, both breakable."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lab.real.disks import fill, make_read_only, run
from lab.real.parts import install, kernel

DISK_BYTES = 96 * 1024**2  # three spools with their reserves take a quarter of it


@dataclass
class Clock:
    """CLOCK_REALTIME of the daemons alone, by libfaketime; boot time and monotonic stay real."""

    file: Path
    offset_seconds: int = 0
    furthest: float = 0.0  # seconds since 1970: the latest time that it has shown

    def __post_init__(self) -> None:
        self.set(0)

    def set(self, offset_seconds: int) -> None:
        """Step the clock; the file is replaced atomically."""
        self.furthest = max(self.furthest, time.time() + self.offset_seconds)
        self.offset_seconds = offset_seconds
        fresh = self.file.with_name(f"{self.file.name}.new")
        fresh.write_text(f"{offset_seconds:+d}\n")
        fresh.replace(self.file)

    def caught_up(self) -> bool:
        """Return whether the real time is later than every time the clock has shown."""
        return self.offset_seconds == 0 and time.time() > self.furthest

    @property
    def settings(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(install.faketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }


@dataclass
class Disk:
    """A small file system."""

    path: Path
    kind: str
    repairs: int = 0
    troubled: bool = field(default=False)
    touched: float = 0.0  # monotonic: when a trouble was over

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill it to the last byte."""
        self.last_errord = True
        try:
            fill(self.path / "other")
            yield
        finally:
            (self.path / "other").unlink(missing_ok=True)
            run("sync", "-f", str(self.path))  # else a file system that breaks now has it again
            self._well()

    def _well(self) -> None:
        self.last_errord, self.touched = False, time.monotonic()

    def break_(self) -> None:
        """Trigger an error in the kernel, which makes the file system read-only."""
        self.last_errord = True
        make_read_only(self.path)

    def repair(self) -> None:
        """Check and mount again, as a node does when it starts. No process may use it meanwhile.

        A copy of the image: the kernel keeps the broken one while another mount namespace has it.
        """
        device = run("findmnt", "-no", "SOURCE", str(self.path))
        image = Path(run("losetup", "-nO", "BACK-FILE", device))
        run("umount", str(self.path))
        self.repairs += 1
        copy = self.path.with_name(f"repaired-{self.repairs}.img")
        shutil.copy(image, copy)
        checked = subprocess.run(["e2fsck", "-fp", str(copy)], capture_output=True, check=False)
        assert checked.returncode in {0, 1}, checked.stdout.decode()  # 1: errors were corrected
        run("mount", "-o", "loop", str(copy), str(self.path))
        if image.name.startswith("repaired-"):
            image.unlink()
        self._well()


@contextmanager
def disk(path: Path, kind: str) -> Iterator[Disk]:
    """Mount an empty one, unmount it at the end."""
    make = {"ext4": kernel.ext4, "tmpfs": kernel.tmpfs}[kind]
    with make(path, DISK_BYTES):
        yield Disk(path, kind)
    for image in path.parent.glob("repaired-*.img"):
        image.unlink()
