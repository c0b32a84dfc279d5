"""Every known way out of the process, on a real network: which layer stops it.

SECURITY.md repeats the outcome. `out` = the stranger received the secret; `dns` = a question with
it reached the name server. The ways that are open with both layers are for the rules of the
network.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lab.real.parts.install import ROOT

pytestmark = pytest.mark.real

# Way -> how it ends with the audit hook alone, with the seccomp filter alone, with both.
HOOK = ("closed", "out", "closed")
HOOK_DNS = ("closed", "dns", "closed")
BOTH = ("closed", "closed", "closed")
KERNEL = ("out", "closed", "closed")
NETWORK, NETWORK_DNS = ("out", "out", "out"), ("dns", "dns", "dns")
ENDS = {
    "connect": HOOK,
    "connect_ex": HOOK,
    "_socket.socket": HOOK,
    "UDP sendto": HOOK,
    "UDP sendmsg": HOOK,
    "TCP Fast Open": HOOK,
    "IPv4 in IPv6": HOOK,
    "asyncio connected datagram": HOOK,
    "asyncio datagram": BOTH,  # it binds its socket
    "decimal address": HOOK,
    "hexadecimal address": HOOK,
    "raw socket": BOTH,
    "packet socket": BOTH,
    "vsock": BOTH,
    "subclass with another family": HOOK,
    "host that prints as another": HOOK,
    "port that converts to another": HOOK,
    "connect to IPv4 with a scope": BOTH,  # glibc knows no such address
    "look-up of IPv4 with a scope": BOTH,
    "getaddrinfo": HOOK_DNS,
    "gethostbyname_ex": HOOK_DNS,
    "gethostbyaddr": HOOK_DNS,
    "getfqdn": HOOK_DNS,
    "bind to a name": NETWORK_DNS,  # C looks it up before the event
    "getnameinfo": HOOK_DNS,
    "getnameinfo of data": HOOK_DNS,
    "connect to a name": NETWORK_DNS,  # likewise
    "asyncio getnameinfo": HOOK_DNS,
    "subprocess": BOTH,
    "os.system": BOTH,
    "posix_spawn": BOTH,
    "fork": BOTH,
    "multiprocessing": KERNEL,  # no event in Python 3.11
    "ctypes connect": HOOK,
    "ctypes look-up": HOOK_DNS,
    "ctypes function resolved before the hook": NETWORK,  # no event before Python 3.14
    "native client's connect": HOOK,  # a stand-in: the import ends with ImportError
    "native client's look-up": HOOK_DNS,
    "accepted connection": BOTH,
    "relay by an AF_UNIX socket": BOTH,
    "UDP to an allowed TCP port": HOOK,
    "the gate's memory changed": NETWORK,
    "the gate's check replaced": HOOK,
    "listen without bind": KERNEL,  # no event
}
UNCOUNTED = {  # that the hook refuses or does not see, and does not count
    *("connect to IPv4 with a scope", "bind to a name", "connect to a name", "multiprocessing"),
    *("native client's connect", "native client's look-up", "listen without bind"),
    *("the gate's memory changed", "ctypes function resolved before the hook"),
}


def tried(mode: str, directory: Path) -> dict[str, dict[str, object]]:
    """Try all ways in a network and a mount namespace of their own; return the line of each."""
    inside = ["unshare", "--net", "--mount", sys.executable, "-m", "lab.real.ways_out"]
    done = subprocess.run(
        [*inside, mode, str(directory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, f"{done.stderr} (root is needed)"
    lines = map(json.loads, done.stdout.splitlines())
    return {str(line["way"]): line for line in lines}


@pytest.mark.parametrize(("place", "mode"), list(enumerate(["hook", "kernel", "both"])))
def test_each_way_out_ends_at_its_layer(place: int, mode: str, tmp_path: Path) -> None:
    found = tried(mode, tmp_path)
    ends = {way: line["end"] for way, line in found.items()}
    assert ends == {way: expected[place] for way, expected in ENDS.items()}
    if mode == "hook":
        uncounted = {way for way, line in found.items() if not line["counted"]}
        assert uncounted == UNCOUNTED
