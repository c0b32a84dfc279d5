"""The image for arm64 on a kernel for arm64: what its seccomp filter refuses and allows there."""

import json
import signal
from pathlib import Path

import pytest

from byoc_agents.egress.seccomp import MACHINES
from lab.real.compat_calls import EXIT_CODE
from lab.real.parts import images, machine
from lab.seccomp_probes import PROBES, SOCKETS, expected_outcomes
from tests.real.test_real_ways_out import ENDS

Results = dict[str, machine.Result]
PYTHON = ("/usr/bin/python3", "-m")
EXPECTED = expected_outcomes(MACHINES["aarch64"])
UNFILTERED = ("denied", "absent", "sockets")  # run without the filter too
MODES = {"kernel": 1, "both": 2}  # of `lab.real.ways_out`; the place of its end in ENDS


@pytest.fixture(scope="module")
def results(foreign_layout: Path) -> Results:
    """Boot the image that has all daemons, and run everything in it."""
    settings = json.dumps(images.SETTINGS | {"BYOC_SECCOMP": "require"})
    commands = {
        "machine": [*PYTHON, "platform"],
        "compat": [*PYTHON, "lab.real.compat_calls"],
        "daemons": [
            *(*PYTHON, "lab.real.daemon_threads", settings),
            *("byoc-agents", "run", *images.DAEMONS),
        ],
    }
    probe = (*PYTHON, "lab.seccomp_probes")
    commands |= {f"probe {name}": [*probe, name] for name in PROBES}
    commands |= {f"unfiltered {name}": [*probe, name, "--without-filter"] for name in UNFILTERED}
    ways = (*PYTHON, "lab.real.ways_out")
    commands |= {f"ways {mode}": [*ways, mode, "/tmp", "prepared"] for mode in MODES}
    return machine.run_commands(foreign_layout, images.tag(images.ALL_IN_ONE), commands)


def test_the_kernel_is_debians_for_arm64(results: Results) -> None:
    platform = results["machine"].output
    assert platform.startswith("Linux-6.")
    assert "-arm64-aarch64-" in platform


@pytest.mark.parametrize("probe", PROBES)
def test_the_kernel_decides_as_on_other_architectures(results: Results, probe: str) -> None:
    assert results[f"probe {probe}"].json() == EXPECTED[probe]


def test_the_refusals_are_the_filters(results: Results) -> None:
    """Without the filter, root gets other answers to the same calls."""
    denied, absent, sockets = (results[f"unfiltered {name}"].json() for name in UNFILTERED)
    assert set(denied) == set(EXPECTED["denied"])
    assert "EPERM" not in denied.values()
    assert absent["clone3"] == "EINVAL"
    assert len(sockets) == len(SOCKETS)
    assert "EPERM" not in sockets


def test_a_32_bit_call_ends_the_process(results: Results) -> None:
    assert results["compat"].json() == {
        "bits_of_python": 64,
        "alone": EXIT_CODE,
        "below_the_filter": -signal.SIGSYS,
        "64_bits_below_the_filter": 0,
    }


@pytest.mark.parametrize("mode", MODES)
def test_each_way_out_ends_as_on_other_architectures(results: Results, mode: str) -> None:
    found = results[f"ways {mode}"]
    assert found.code == 0, found.error
    lines = map(json.loads, found.output.splitlines())
    assert {line["way"]: line["end"] for line in lines} == {
        way: expected[MODES[mode]] for way, expected in ENDS.items()
    }


def test_the_daemons_run_with_the_filter_that_they_require(results: Results) -> None:
    found = results["daemons"].json()
    threads = found.pop("threads")
    assert found == {
        "code": 0,
        "events": ["seccomp.enforced"],
        "errors": [],
        "enforced": ["1.0"],
    }
    assert len(threads) > 1
    assert set(map(tuple, threads)) == {("2", "1")}, "Seccomp and NoNewPrivs of every thread"
