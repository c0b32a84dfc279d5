"""Brings a cluster up, tests the chart in it, and takes everything down: `make cluster`.

With `--short` only the walk is tested: install, delivery, policies, upgrade, rollback, uninstall.
With `--if-built` nothing is done unless Kubernetes has already been built, which takes minutes.
With `--keep` no test runs: the chart is installed and left for a person until Ctrl-C. With
`--kubeconfig` the walk is tested on the cluster of KUBECONFIG, such as kind's, whose node has the
images. Other arguments are pytest's.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial

from lab.cluster import components, machine, parts
from lab.real.parts import helm, install
from lab.real.parts.install import ROOT
from lab.real.parts.process import PartError

TESTS = "tests/cluster"
WALK = f"{TESTS}/test_cluster_walk.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Return the exit code of the tests; 130 after Ctrl-C; 1 if a part cannot be had."""
    parser = argparse.ArgumentParser(prog="make cluster", description=__doc__)
    parser.add_argument("--short", action="store_true", help="only the walk")
    parser.add_argument("--if-built", action="store_true", help="not if it takes a build")
    parser.add_argument("--keep", action="store_true", help="leave it for a person, until Ctrl-C")
    parser.add_argument("--kubeconfig", action="store_true", help="the walk on another cluster")
    options, others = parser.parse_known_args(argv)
    started = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-m", "cluster", "-s", "--durations=0", *others]
    if not any(one.startswith("tests/") for one in others):
        command.append(WALK if options.short or options.kubeconfig else TESTS)
    if options.keep:
        command = [sys.executable, "-m", "lab.cluster.kept"]
    if options.kubeconfig:
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    if options.if_built and not parts.are_built():
        report("Kubernetes is not built: no test has run. `make cluster` builds it and runs them.")
        return 0
    machine.exit_on_signals()  # a Docker Engine builds the images
    try:
        prepare()
        report(f"programs and images ready ({time.monotonic() - started:.0f} s)")
        code = machine.run(command, {})
    except PartError as error:
        report(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    report(f"everything is down ({time.monotonic() - started:.0f} s in all)")
    return code


def prepare() -> None:
    """Make all programs and images; this needs the network, which the cluster has not."""
    for name, make in (
        ("Kubernetes", parts.kubernetes),
        ("kube-router", parts.kube_router),
        ("etcd, network plugins, iptables", parts.debian),
        ("kubectl, Helm 4", components.programs),
        ("Helm 3, which renders the examples", partial(helm.helm, helm.VERSIONS[0])),
        ("LocalStack", install.localstack),
        ("the Prometheus operator's definitions", parts.crds),
        ("the definitions of Istio and cert-manager", install.resource_definitions),
        ("images", parts.image_archive),
    ):
        started = time.monotonic()
        make()
        if (seconds := time.monotonic() - started) > 1:
            report(f"{name} ready ({seconds:.0f} s)")


def report(line: str) -> None:
    """Print at once, also into a pipe."""
    sys.stdout.write(f"cluster: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
