"""Run daemons as `byoc-agents run` does, and print the number of tasks on SIGUSR1.

`python -m lab.chaos.launch DAEMON ...`. A line of JSON with `tasks` goes to standard error.
"""

import asyncio
import json
import signal
import sys

from byoc_agents.app import cli


def print_tasks(_number: int, _frame: object) -> None:
    """Print the number of tasks of the loop, if it runs."""
    try:
        tasks = len(asyncio.all_tasks())
    except RuntimeError:
        return
    sys.stderr.write(json.dumps({"event": "chaos.tasks", "tasks": tasks}) + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, print_tasks)
    sys.exit(cli.main(["run", *sys.argv[1:]]))
