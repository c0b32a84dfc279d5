"""Restrict access to the process and to its files at the start: memory, core files, file modes."""

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
PR_SET_DUMPABLE = 4  # linux/prctl.h


def restrict_process() -> None:
    """Make new files private, write no core file, hide memory and environment from all but root.

    To be called before the audit hook closes ctypes. Logs an error if the memory stays readable for
    other processes of the same user.
    """
    os.umask(PRIVATE_UMASK)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        _hide_memory()
    except (ImportError, AttributeError, OSError) as error:  # no ctypes, or not Linux
        structlog.get_logger().error(
            "process.readable", error=str(error), expected="Linux and a Python with ctypes"
        )


def _hide_memory() -> None:
    """Make `/proc/PID` of this process belong to root, and refuse debuggers of its own user.

    The seccomp filter cannot do this: it holds for the calls of this process, not of others.
    """
    import ctypes  # noqa: PLC0415  0.3 MiB, and some Pythons have none

    prctl = ctypes.CDLL(None, use_errno=True).prctl
    zero = ctypes.c_ulong(0)
    if prctl(PR_SET_DUMPABLE, zero, zero, zero, zero):
        raise OSError(f"PR_SET_DUMPABLE: {os.strerror(ctypes.get_errno())}")


def restrict_directories(directories: Iterable[Path]) -> None:
    """Take the access of other users from existing directories and all that is in them.

    Logs each path that they had access to. A path of another owner cannot be changed: it is used as
    it is, with an error in the log, and the contents of such a directory are left out. Links are
    left out too: they may lead elsewhere.
    """
    for directory in directories:
        if not _restrict(directory):
            continue
        for parent, directories_within, files in os.walk(directory):  # skips what it cannot read
            for path in (Path(parent, name) for name in (*directories_within, *files)):
                if not path.is_symlink():
                    _restrict(path)


def _restrict(path: Path) -> bool:
    """Return whether the path exists and is closed to others, after a change if need be."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:  # not there yet: it is made for this user only
        return False
    if not mode & OTHERS:
        return True
    logger = structlog.get_logger().bind(path=str(path), mode=f"{mode:04o}")
    try:
        path.chmod(mode & ~OTHERS)
    except OSError as error:
        logger.error("state.open_to_others", error=error.strerror, expected="no access for others")
        return False
    logger.warning("state.closed_to_others")
    return True


def report_parent(directory: Path) -> None:
    """Log a warning if every user may rename or replace the contents of a directory.

    It is not changed: it may serve others too. An `emptyDir` of Kubernetes is such a directory,
    which is harmless if its containers have one user.
    """
    try:
        mode = stat.S_IMODE(directory.stat().st_mode)
    except OSError:  # not there yet: it is made for this user only
        return
    if mode & WRITABLE_BY_OTHERS and not mode & stat.S_ISVTX:  # with it only owners may rename
        structlog.get_logger().warning(
            "state.parent_writable",
            path=str(directory),
            mode=f"{mode:04o}",
            expected="no write access for others",
        )


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
