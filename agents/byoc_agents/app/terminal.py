"""Color for people, only on a terminal."""

import os
from typing import TextIO

GREEN, RED, RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"


def color_verdict(text: str, stream: TextIO, *, ok: bool) -> str:
    """Return the text in green or red if `stream` is a terminal and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{GREEN if ok else RED}{text}{RESET}"
