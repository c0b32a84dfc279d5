"""The statements of S3Queue, as far as chdb executes them: its queues are made and do not start.

What reads the objects is not run anywhere here. `test_real_chdb.py` asks the engine which keys the
path of each queue has.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from byoc_control_plane.schema import USAGE_SQL, split_statements
from lab.real.parts import install
from lab.real.parts.process import RealProcess
from lab.real.parts.zookeeper import zookeeper
from tests.real.engine_process import run_engine

pytestmark = pytest.mark.real

CONFIG = """<clickhouse>
  <zookeeper><node><host>127.0.0.1</host><port>{port}</port></node></zookeeper>
</clickhouse>"""
QUEUES = {
    "s3queue.sql": "byoc_usage_queue_2026_11",
    "s3queue_archives.sql": "byoc_archive_queue_2026",
}
ENGINES = [pytest.param(install.chdb, id="26.9"), pytest.param(install.older_chdb, id="25.8")]


def queue_statements(name: str) -> list[str]:
    """Return the statements as a person fills them in."""
    text = (USAGE_SQL / name).read_text()
    for place, value in {"BUCKET": "usage", "REGION": "eu-central-1"}.items():
        text = text.replace(place, value)
    return split_statements(text.replace("YEAR", "2026").replace("MONTH", "11"))


@pytest.fixture(scope="module")
def keeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealProcess]:
    with zookeeper(tmp_path_factory.mktemp("zookeeper") / "z") as running:
        yield running


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_is_made_with_its_settings_and_chdb_does_not_start_it(
    keeper: RealProcess, tmp_path: Path, name: str, engine: object
) -> None:
    """If this fails, chdb has become able to: then a test of the loaded rows belongs here."""
    assert callable(engine)
    config = tmp_path / "config.xml"
    config.write_text(CONFIG.format(port=keeper.port))
    table, (make, view) = QUEUES[name], queue_statements(name)
    misspelled = make.replace("tracked_files_limit", "tracked_file_limit").replace(table, "other")
    usage = split_statements((USAGE_SQL / "table.sql").read_text())
    queries = [*usage, make, view, f"SHOW CREATE TABLE {table}", misspelled]
    found = run_engine(engine(), f"{tmp_path / 'e'}?config-file={config}", queries)
    refused, viewed, shown, unknown = found[-4:]
    assert found[:-4] == [""] * len(usage)
    assert refused.startswith("Code: 49. DB::Exception: Shutdown was called."), refused
    assert not viewed
    for setting in ("mode = \\'unordered\\'", "tracked_files_limit = 1000000"):
        assert setting in shown
    assert unknown.startswith("Code: 115."), unknown  # so the settings were read


@pytest.mark.parametrize("engine", ENGINES)
def test_without_a_keeper_no_queue_is_made(tmp_path: Path, engine: object) -> None:
    assert callable(engine)
    makes = [queue_statements(name)[0] for name in QUEUES]
    for refused in run_engine(engine(), str(tmp_path / "e"), makes):
        assert re.match(r"Code: 139\. DB::Exception: There is no Zookeeper configuration", refused)
