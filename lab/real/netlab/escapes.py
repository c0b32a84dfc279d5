"""Programs that try to connect from the pod to another host, and print the result.

Their arguments are the stranger's name and address. They run in the environment of the daemons.
"""

from pathlib import Path

BEHIND_THE_GATE = (Path(__file__).parent / "behind_the_gate.py").read_text()

# As a library would that opens its sockets in C, or another program of the pod.
PAST_THE_GATE = """
import socket, sys
try:
    socket.create_connection((sys.argv[2], 443), timeout=1).close()
    print("went through")
except OSError as error:
    print(type(error).__name__)
"""
