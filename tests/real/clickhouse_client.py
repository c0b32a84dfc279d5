"""A `clickhouse-client` for the script of the certificates: its options, on clickhouse-driver.

With `--secure` the queries run in one session of the native protocol, with the certificate of the
configuration file. Without it, the query goes to the stand-in's administrator at ADMIN_URL.
"""

import argparse
import os
import sys
import urllib.request
import xml.etree.ElementTree as ET

from clickhouse_driver import Client, errors


def main() -> int:
    """Run the queries; return the exit code."""
    parser = argparse.ArgumentParser()
    for name in ("host", "query", "config-file", "user"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--port", type=int)
    parser.add_argument("--secure", action="store_true")
    asked = parser.parse_args()
    if not asked.secure:
        with urllib.request.urlopen(os.environ["ADMIN_URL"], asked.query.encode()) as reply:
            sys.stdout.write(reply.read().decode())
        return 0
    settings = ET.parse(asked.config_file)
    client = Client(
        os.environ["HOST"],  # the name in --host is in no DNS
        asked.port,
        user=asked.user,
        secure=True,
        certfile=settings.findtext("openSSL/client/certificateFile"),
        keyfile=settings.findtext("openSSL/client/privateKeyFile"),
        ca_certs=settings.findtext("openSSL/client/caConfig"),
        server_hostname=asked.host,
    )
    try:
        for query in asked.query.split("; "):
            for row in client.execute(query):
                sys.stdout.write(f"{row[0]}\n")
    except errors.ServerException as error:
        sys.stderr.write(f"Code: {error.code}. {error.message}\n")
        return 1
    except (errors.Error, OSError, EOFError) as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
