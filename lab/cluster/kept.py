"""Brings up a cluster with the chart in its namespaces, and waits until it is interrupted."""

import signal
import sys

from lab.cluster import cluster as cluster_part
from lab.cluster import environment
from lab.cluster.__main__ import report
from lab.real.parts.process import PartError

USE = """
The cluster is up and the chart is installed. From another terminal, as root:
  {enter} kubectl get pods --all-namespaces
  {enter} helm list --namespace {namespace}
Ctrl-C here takes it down.
"""


def main() -> int:
    """Return 0 after Ctrl-C, 1 if it does not come up."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with cluster_part.running(report) as cluster:
            environment.prepare(cluster)
            with environment.receiving(cluster) as received:
                received.make()
            environment.install_chart(cluster)
            environment.wait_for_chart(cluster)
            report(USE.format(enter=cluster.directory / "enter", namespace=environment.NAMESPACE))
            signal.pause()
    except PartError as error:
        report(str(error))
        return 1
    except KeyboardInterrupt:
        report("stopping ...")
    return 0


if __name__ == "__main__":
    sys.exit(main())
