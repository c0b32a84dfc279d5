"""Model the entrypoint of ClickHouse's image: the files it writes before the server starts.

Read in ClickHouse/docker-library at commit b34751676b4cd113caedf5d6f99ce21fa34ac480,
server/25.8.29.51/entrypoint.sh and server/26.7.3.19/entrypoint.sh, whose differences do not matter
here. The script is not in any registry, so a test cannot run it.
"""

from collections.abc import Mapping
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

CONFIG_D = PurePosixPath("/etc/clickhouse-server/config.d")
USERS_D = PurePosixPath("/etc/clickhouse-server/users.d")
RELATED = CONFIG_D / "docker_related_config.xml"  # the image's own; listens on all addresses
# Of the image's config.xml: data, temporary files, users' files, schemas, and the log's directory.
DIRECTORIES = (
    *("/var/lib/clickhouse", "/var/lib/clickhouse/tmp", "/var/lib/clickhouse/user_files"),
    *("/var/lib/clickhouse/format_schemas", "/var/log/clickhouse-server"),
)


def find_writes(environment: Mapping[str, str], users: Mapping[str, str]) -> set[PurePosixPath]:
    """Return every path that the entrypoint creates or writes if it does not run as root.

    `users` has the files that are mounted into users.d, by name.
    """
    found = {PurePosixPath(path) for path in DIRECTORIES}
    found.add(PurePosixPath("/tmp/users.xml"))  # a copy, to compare
    if environment.get("CLICKHOUSE_SKIP_USER_SETUP", "0") == "1":
        return found
    renamed = environment.get("CLICKHOUSE_USER", "default") != "default"
    given = renamed or bool(environment.get("CLICKHOUSE_PASSWORD"))
    changed = any(ET.fromstring(text).find("users/default") is not None for text in users.values())
    if given or not changed:
        found.add(USERS_D / "default-user.xml")
    return found
