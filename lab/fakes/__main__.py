"""Serve an S3 in its own process: `python -m lab.fakes --port 0 --journal FILE`."""

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path

from lab.fakes.http import Behavior, Request, lose, serve
from lab.fakes.s3 import FakeS3, Put


async def run(port: int, journal: Path, lose_every: int) -> None:
    """Serve a FakeS3 until SIGTERM. The journal gets one JSON line per PUT before the response."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    def script(request: Request) -> Behavior:
        return lose() if lose_every and request.number % lose_every == 0 else serve

    with journal.open("a") as file:

        def note(put: Put) -> None:
            line = {"key": put.key, "sha256": put.sha256, "status": put.status}
            file.write(json.dumps(line) + "\n")
            file.flush()

        async with FakeS3(script, port=port, on_put=note) as s3:
            sys.stdout.write(f"{s3.http.port}\n")
            sys.stdout.flush()
            await stop.wait()


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m lab.fakes", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 = any free one, printed")
    parser.add_argument("--journal", type=Path, required=True, help="JSON lines, one a PUT")
    parser.add_argument("--lose-every", type=int, default=0, help="lose every n-th answer")
    options = parser.parse_args()
    asyncio.run(run(options.port, options.journal, options.lose_every))


if __name__ == "__main__":
    main()
