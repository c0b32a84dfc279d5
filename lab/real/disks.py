"""Fill a file system to the last byte, or make it read-only by an error in the kernel."""

import errno
import os
import shutil
import subprocess
from pathlib import Path

DISK_BYTES = 16 * 1024**2
BLOCK_BYTES = 64 * 1024


def fill(file: Path) -> None:
    """Write until not one more byte fits."""
    size = BLOCK_BYTES
    with file.open("ab", buffering=0) as other:
        while size:
            try:
                other.write(b"x" * size)
                os.fsync(other.fileno())
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
                size //= 2


def make_read_only(disk: Path) -> None:
    """Trigger an error of ext4, with the mount option that distributions set for it.

    `mount -o remount,ro` is refused (EBUSY) while any file is open for writing.
    """
    run("mount", "-o", "remount,errors=remount-ro", str(disk))
    device = Path(run("findmnt", "-no", "SOURCE", str(disk))).name
    Path("/sys/fs/ext4", device, "trigger_fs_error").write_text("a test")


def repair(disk: Path) -> None:
    """Check the file system and mount it again, as a node does when it starts.

    It mounts a copy: the kernel keeps the broken one while another mount namespace uses it.
    """
    run("umount", str(disk))
    image = shutil.copy(disk.with_name(f"{disk.name}.img"), disk.with_name("repaired.img"))
    checked = subprocess.run(["e2fsck", "-p", str(image)], capture_output=True, check=False)
    assert checked.returncode in {0, 1}, checked.stdout.decode()  # 1: errors were corrected
    run("mount", "-o", "loop", str(image), str(disk))


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
