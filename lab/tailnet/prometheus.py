"""A stand-in for Prometheus, which echoes requests: `python -m lab.tailnet.prometheus HOST`."""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = 9090
SLOW_PATH = "/api/v1/query?query=slow"  # answered after SLOW_SECONDS; the output has a line before
SLOW_SECONDS = 20


class Api(BaseHTTPRequestHandler):
    """Answers every request with its method, path and headers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer with the request."""
        if self.path == SLOW_PATH:
            print("slow", flush=True)
            time.sleep(SLOW_SECONDS)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = json.dumps({"method": self.command, "path": self.path, "headers": headers}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  as the base class
        """Log nothing."""


if __name__ == "__main__":
    with ThreadingHTTPServer((sys.argv[1], PORT), Api) as server:
        print("ready", flush=True)
        server.serve_forever()
