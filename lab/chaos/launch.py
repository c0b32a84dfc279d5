"""Runs daemons as `byoc-agents run` does, and tells how many tasks it has when SIGUSR1 asks.

`python -m lab.chaos.launch DAEMON ...`. A line of JSON with `tasks` goes to standard error.
"""

import asyncio
import json
import signal
import sys

from byoc_agents.app import cli


def tell(_number: int, _frame: object) -> None:
    """Count the tasks of the running loop; there is none before and after it runs."""
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        return
    sys.stderr.write(json.dumps({"event": "chaos.tasks", "tasks": tasks}) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, tell)
    sys.exit(cli.main(["run", *sys.argv[1:]]))
