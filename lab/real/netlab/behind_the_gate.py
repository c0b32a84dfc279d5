"""Try three ways to another host through the gate that `byoc-agents run` installs.

Run inside the pod, in the environment of the daemons. The arguments are the other host's name and
its address. Prints one line per way, and then the refusals that were counted.
"""

import asyncio
import os
import socket
import sys

from byoc_agents.app import logging as log
from byoc_agents.app import run
from byoc_agents.app.metrics import Metrics
from byoc_agents.egress.audit_hook import enforce_process
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import SendError


async def request(gate: Gate, host: str) -> None:
    """Send a GET request through the session of the daemons."""
    async with gate.session() as session:
        await session.get(f"https://{host}/")


async def connect(address: str) -> None:
    """Open a socket as another library would."""
    socket.create_connection((address, 443), timeout=1).close()


async def resolve(host: str) -> None:
    """Look the name up as another library would."""
    socket.getaddrinfo(host, 443)


def main(host: str, address: str) -> None:
    """Install the gate, try each way, and print the results."""
    log.configure("error")
    metrics = Metrics()
    gate = run.build_gate(run.configure(list(run.DAEMONS), os.environ), metrics, [])
    enforce_process(gate)
    for attempt in (request(gate, host), connect(address), resolve(host)):
        try:
            asyncio.run(attempt)
            print("went through")
        except SendError as error:
            print(error)
    (family,) = metrics.egress_refused.collect()
    for sample in family.samples:
        print(sample.labels["reason"], sample.value)


if __name__ == "__main__":
    main(*sys.argv[1:])
