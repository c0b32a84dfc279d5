r"""Read the file operations of a traced program from the output of `strace -f -y -xx`.

    4711 pwrite64(5</tmp/x/spool.db-wal>, "\x37\x7f...", 32, 0) = 32
    4711 fdatasync(5</tmp/x/spool.db-wal> <unfinished ...>
    4712 writev(1</tmp/x/output>, [{iov_base="\x70\x75\x74\x20\x37\x0a", iov_len=6}], 1) = 6
    4711 <... fdatasync resumed>) = -1 EIO (Input/output error) (INJECTED)

A call takes effect at its end: earlier output was written before it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CALLS = "openat,write,writev,pwrite64,fsync,fdatasync,ftruncate,fallocate,rename,unlink"
LINE = re.compile(r"(\d+) +(.*)")
BEGUN = re.compile(r"(\w+)\((.*) <unfinished \.\.\.>$")
ENDED = re.compile(r"<\.\.\. (\w+) resumed>(.*)$")
WHOLE = re.compile(r"(\w+)\((.*)\) += +(-?\d+)(?:<.*>)?( [A-Z]+ .*)?$")
STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
FLAG = re.compile(r"\bO_[A-Z]+")
BY_NAME = frozenset({"openat", "rename", "unlink"})
DESCRIPTOR = re.compile(r"^\d+<([^>]*)>")


class Call(NamedTuple):
    """One executed system call; calls are in the order of their ends."""

    name: str
    path: str  # of its descriptor or its first name
    data: bytes  # written; for a rename the other name
    numbers: tuple[int, ...]  # the arguments that are plain numbers
    result: int
    flags: frozenset[str]  # O_CREAT and the like


def calls(log: Path) -> Iterator[Call]:
    """Yield all calls of a log."""
    begun: dict[str, str] = {}
    for line in log.read_text(errors="replace").splitlines():
        match = LINE.fullmatch(line)
        if match is None:
            continue
        thread, text = match.groups()
        if unfinished := BEGUN.fullmatch(text):
            begun[thread] = f"{unfinished[1]}({unfinished[2]}"
            continue
        if resumed := ENDED.fullmatch(text):
            text = begun.pop(thread) + resumed[2]
        if whole := WHOLE.fullmatch(text):
            yield _call(whole)


def _call(whole: re.Match[str]) -> Call:
    name, arguments, result = whole[1], whole[2], int(whole[3])
    strings = [_bytes(found) for found in STRING.findall(arguments)]
    numbers = tuple(int(n) for n in re.findall(r"(?<=, )\d+(?=$|,)", STRING.sub("", arguments)))
    flags = frozenset(FLAG.findall(arguments))
    if (descriptor := DESCRIPTOR.match(arguments)) and name not in BY_NAME:
        path = _name(descriptor[1])
        return Call(name, path, strings[-1] if strings else b"", numbers, result, flags)
    path, *rest = [*(found.decode() for found in strings), ""]
    return Call(name, path, rest[0].encode(), numbers, result, flags)


def _name(text: str) -> str:
    """Return a descriptor's path, which may be written in hexadecimal as well."""
    return _bytes(text).decode() if text.startswith("\\x") else text


def _bytes(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", ""))
