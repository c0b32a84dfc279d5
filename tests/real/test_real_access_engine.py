"""An engineer at the stand-in, with a certificate, and answered by the real engine as a role.

The statements of the broker make the user; the engine of ClickHouse 26.9 checks its rights.
"""

import datetime as dt
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from chdb import query as run_engine
from clickhouse_driver.errors import ServerException

from byoc_agents.access import clickhouse_sql as sql
from lab.fakes import access as stand_in
from lab.real.access_engine import TABLES, engineer, prepare
from lab.tailnet import certificates
from lab.tailnet.certificates import GRANT
from tests.lab.native_server import USER, Server, ask

READER = sql.ROLES[1]
HASHED = f"SELECT count() FROM {sql.VIEWS}.tables"
REFUSED = {  # statement -> code of the engine
    "SELECT * FROM shop.orders": 497,
    f"SELECT query FROM {TABLES}.query_log": 497,  # a copy of a system table, as in access_engine
    "CREATE TABLE shop.other (x UInt8) ENGINE = Memory": 497,
    f"{HASHED} SETTINGS max_threads = 9": 164,
}


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    prepare(tmp_path)
    (tmp_path / "certificates").mkdir()
    certificates.make(tmp_path / "certificates", "svc-1", dt.datetime.now(dt.UTC))
    made = Server(tmp_path / "certificates")
    with engineer(tmp_path, READER) as engine:
        made.fake.engine = lambda text: str(engine.query(text, "TSV"))
        async with made.serving():
            await made.create_user()
            yield made


async def test_a_certificates_user_reads_the_views_of_its_role_and_nothing_else(
    server: Server,
) -> None:
    client = server.client()
    ((count,),) = await ask(client, HASHED)
    assert count.isdecimal()
    for statement, code in REFUSED.items():
        with pytest.raises(ServerException) as error:
            await ask(client, statement)
        assert error.value.code == code, statement
    await server.administer(sql.drop_user(GRANT))
    with pytest.raises(ServerException) as error:
        await ask(client, HASHED)
    assert error.value.code == 516
    kinds = [row["type"] for row in server.fake.query_log[USER]]
    assert kinds.count("QueryFinish") == 1
    assert kinds.count("ExceptionWhileProcessing") == len(REFUSED)


async def test_the_codes_of_the_stand_in_have_these_names_in_the_engine() -> None:
    codes = {
        stand_in.UNKNOWN_USER: "UNKNOWN_USER",
        stand_in.AUTHENTICATION_FAILED: "AUTHENTICATION_FAILED",
        stand_in.USER_EXPIRED: "USER_EXPIRED",
        int(re.findall(r"\d+", stand_in.CANCELLED)[0]): "QUERY_WAS_CANCELLED",
    }
    for code, name in codes.items():
        assert str(run_engine(f"SELECT errorCodeToName({code})", "TSV")).strip() == name
