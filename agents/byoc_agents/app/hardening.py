"""Restrict the process and access to its files at the start: file modes, core files."""

import os
import resource
import stat
from collections.abc import Iterable
from pathlib import Path

import structlog

PRIVATE_UMASK = 0o077  # new files are for this user only
OTHERS = stat.S_IRWXO
# The group keeps its access: a volume with fsGroup serves a pod whose user id changes by it.
WRITABLE_BY_OTHERS = stat.S_IWOTH


def restrict_process() -> None:
    """Make new files private, and write no core file, which would hold secrets."""
    os.umask(PRIVATE_UMASK)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def restrict_directories(directories: Iterable[Path]) -> None:
    """Take the access of other users from directories that exist. Logs each that had it.

    A directory of another owner cannot be changed: it is used as it is, with an error in the log.
    """
    for directory in directories:
        try:
            mode = stat.S_IMODE(directory.stat().st_mode)
        except OSError:  # not there yet: it is made with 0700
            continue
        if not mode & OTHERS:
            continue
        logger = structlog.get_logger().bind(path=str(directory), mode=f"{mode:04o}")
        try:
            directory.chmod(mode & ~OTHERS)
        except OSError as error:
            logger.error(
                "state.open_to_others", error=error.strerror, expected="no access for others"
            )
        else:
            logger.warning("state.closed_to_others")


def report_writable(files: Iterable[str]) -> None:
    """Log an error for each file of settings or secrets that every user of the machine may change.

    Files that everybody may read are usual: Kubernetes mounts secrets so, and the container has one
    user.
    """
    for file in files:
        try:
            mode = stat.S_IMODE(Path(file).stat().st_mode)
        except OSError:  # reported by the code that reads it
            continue
        if mode & WRITABLE_BY_OTHERS:
            structlog.get_logger().error(
                "settings.writable",
                path=file,
                mode=f"{mode:04o}",
                expected="no write access for others",
            )
