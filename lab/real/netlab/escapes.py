"""Programs that try to connect from the pod to another host, and print the result.

Their arguments are the stranger's name and address. They run in the environment of the daemons.
"""

# Through the very gate that `byoc-agents run` puts up, in three ways.
BEHIND_THE_GATE = """
import asyncio, os, socket, sys
from byoc_agents.app import run
from byoc_agents.app import logging as log
from byoc_agents.errors import SendError
from byoc_agents.app.metrics import Metrics
from byoc_agents.egress.audit_hook import enforce_process

log.configure("error")
metrics = Metrics()
gate = run._gate(run.configure(list(run.DAEMONS), os.environ), metrics, [])
enforce_process(gate)

async def by_the_session():
    async with gate.session() as session:
        await session.get(f"https://{sys.argv[1]}/")

async def by_another_socket():
    socket.create_connection((sys.argv[2], 443), timeout=1).close()

async def by_another_lookup():
    socket.getaddrinfo(sys.argv[1], 443)

for attempt in (by_the_session, by_another_socket, by_another_lookup):
    try:
        asyncio.run(attempt())
        print("went through")
    except SendError as error:
        print(error)
(family,) = metrics.egress_refused.collect()
for sample in family.samples:
    print(sample.labels["reason"], sample.value)
"""

# As a library would that opens its sockets in C, or another program of the pod.
PAST_THE_GATE = """
import socket, sys
try:
    socket.create_connection((sys.argv[2], 443), timeout=1).close()
    print("went through")
except OSError as error:
    print(type(error).__name__)
"""
