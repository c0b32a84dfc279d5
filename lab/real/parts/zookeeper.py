"""ZooKeeper 3.8 from Debian, with Debian's Java: the keeper of replicated tables.

ClickHouse's own keeper is a part of its server, which Debian does not have in a current version.
"""

from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port

PACKAGES = (
    *("libzookeeper-java", "libslf4j-java", "libdropwizard-metrics-java", "libsnappy-java"),
    "openjdk-17-jre-headless",
)
JARS = ("zookeeper", "zookeeper-jute", "slf4j-api", "metrics-core", "snappy-java")
MAIN = "org.apache.zookeeper.server.ZooKeeperServerMain"
# Debian's Java reads its configuration in /etc, wherever it is itself: it gets a mount namespace of
# its own, with the unpacked files over /etc.
OVERLAY = 'mount -t overlay overlay -o "lowerdir=$0:/etc" /etc; exec "$@"'
CONFIG = """tickTime=500
dataDir={directory}/data
clientPort={port}
clientPortAddress=127.0.0.1
admin.enableServer=false
"""


def programs() -> Path:
    """Return the directory with the unpacked packages."""
    return install.unpack("zookeeper", PACKAGES, install.CACHE / "zookeeper-archives")


def zookeeper(directory: Path) -> RealProcess:
    """Return ZooKeeper, not started yet; its data are in `directory`."""
    place, port = programs(), free_port()
    (directory / "data").mkdir(parents=True)
    config = directory / "zoo.cfg"
    config.write_text(CONFIG.format(directory=directory, port=port))
    jars = ":".join(str(place / "usr/share/java" / f"{name}.jar") for name in JARS)
    java = next(place.glob("usr/lib/jvm/java-17-openjdk-*/bin/java"))
    inside = ("unshare", "--mount", "sh", "-ec", OVERLAY, str(place / "etc"))
    return RealProcess(
        name="zookeeper",
        command=[*inside, str(java), "-Xmx128m", "-cp", jars, MAIN, str(config)],
        port=port,
        ready_path="",
        log=directory / "zookeeper.log",
    )
