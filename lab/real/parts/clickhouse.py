"""ClickHouse 18.16 from Debian: a real server without system.disks and without grants.

It represents an old server without some tables that a daemon queries.
"""

from pathlib import Path

from lab.real.parts import install
from lab.real.parts.process import RealProcess, free_port

USER = "byoc"  # profile readonly=1, as the daemons are meant to be given
PASSWORD = "loopback"
ADMIN = "default"  # without a password, from 127.0.0.1 only

CONFIG = """<yandex>
  <logger><level>information</level><console>1</console></logger>
  <listen_host>127.0.0.1</listen_host>
  <http_port>{http_port}</http_port><tcp_port>{tcp_port}</tcp_port>
  <path>{directory}/data/</path><tmp_path>{directory}/tmp/</tmp_path>
  <users_config>{directory}/users.xml</users_config>
  <default_profile>default</default_profile><default_database>default</default_database>
  <mark_cache_size>67108864</mark_cache_size>
</yandex>
"""
USERS = f"""<yandex>
  <profiles><default/><readonly><readonly>1</readonly></readonly></profiles>
  <quotas><default/></quotas>
  <users>
    <{ADMIN}>
      <password></password><networks><ip>127.0.0.1</ip></networks>
      <profile>default</profile><quota>default</quota>
    </{ADMIN}>
    <{USER}>
      <password>{PASSWORD}</password><networks><ip>127.0.0.1</ip></networks>
      <profile>readonly</profile><quota>default</quota>
    </{USER}>
  </users>
</yandex>
"""


def old_clickhouse(directory: Path, port: int | None = None) -> RealProcess:
    """Return ClickHouse 18.16, not started yet; its data in `directory` survive a restart."""
    port = port or free_port()
    place = install.debian()
    for name in ("data", "tmp"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    config = directory / "config.xml"
    config.write_text(CONFIG.format(http_port=port, tcp_port=free_port(), directory=directory))
    (directory / "users.xml").write_text(USERS)
    return RealProcess(
        name="clickhouse-server 18.16",
        command=[str(place / "usr/sbin/clickhouse-server"), f"--config-file={config}"],
        port=port,
        ready_path="/ping",
        log=directory / "clickhouse.log",
        environment=install.library_path(place),
    )
