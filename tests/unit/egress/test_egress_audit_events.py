"""Every audit event of every version of Python is allowed, checked or denied."""

import importlib
import json
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_agents.egress.audit_events import ALLOWED, CHECKED, DENIED, GUARDED

TABLES = json.loads(Path(__file__).with_name("audit_events.json").read_text())
HERE = "{}.{}".format(*sys.version_info)
CLASSIFIED = ALLOWED | CHECKED | DENIED.keys()
# In the data of a binary, between two zero bytes: `socket.connect`, `os.startfile/2`.
LITERAL = re.compile(rb"(?<=\0)[a-z_]+(?:\.[A-Za-z_]+)+(?:/[a-z0-9]+)?(?=\0)")
NO_EVENTS = {"ctypes.error_object"}  # a key in the state of a thread
AUDIT_CALL = re.compile(r"sys\.audit\(\s*[\"']([^\"']+)[\"']")


@pytest.mark.parametrize("version", TABLES)
def test_every_event_of_a_version_is_classified(version: str) -> None:
    assert set(TABLES[version]["events"]) - CLASSIFIED == set()


def test_no_event_is_in_two_classes_and_none_is_invented() -> None:
    assert len(ALLOWED) + len(CHECKED) + len(DENIED) == len(CLASSIFIED)
    assert CLASSIFIED - {event for table in TABLES.values() for event in table["events"]} == set()


def test_this_version_has_a_table() -> None:
    """A new version of Python needs its table in audit_events.json first."""
    assert HERE in TABLES


def test_every_event_that_the_standard_library_raises_is_classified() -> None:
    library = Path(sysconfig.get_path("stdlib"))
    files = [
        file for file in library.rglob("*.py") if not {"test", "site-packages"} & {*file.parts}
    ]
    raised = {
        event for file in files for event in AUDIT_CALL.findall(file.read_text(errors="replace"))
    }
    assert len(raised) > 30
    assert raised - CLASSIFIED == set()


def test_the_binaries_of_this_version_name_no_other_event_of_a_guarded_family() -> None:
    """What looks like one and is not: the names of classes, functions and headers."""
    named = {text for binary in binaries() for text in literals(binary)}
    assert "socket.connect" in named
    unknown = {name for name in named - CLASSIFIED if name.partition(".")[0] in GUARDED}
    unknown = {name for name in unknown if not is_attribute(name) and name[-2:] not in {".c", ".h"}}
    assert unknown - NO_EVENTS == set()


def binaries() -> Iterator[Path]:
    library = sysconfig.get_config_var("LIBDIR")
    yield Path(sys.executable).resolve()
    yield from Path(library).glob("libpython*.so*")
    yield from Path(sysconfig.get_config_var("DESTSHARED")).glob("*.so")


def literals(binary: Path) -> set[str]:
    return {found.decode() for found in LITERAL.findall(binary.read_bytes())}


def is_attribute(name: str) -> bool:
    module, _, attribute = name.partition(".")
    try:
        return hasattr(importlib.import_module(module), attribute)
    except ImportError:
        return False
