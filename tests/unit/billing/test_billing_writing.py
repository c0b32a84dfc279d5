"""A record counts only in a writing that ClickHouse reads alike."""

import re

import pytest
from msgspec.structs import replace

from byoc_agents.app.cloudevents import encode
from byoc_agents.audit.validate import decode, period
from byoc_agents.billing.record import Resized
from lab.fakes.billing import ReplicaHistory, altered


def line() -> str:
    record = ReplicaHistory().measured()
    size = replace(
        record.data.allocated,
        resized=Resized(
            cpu_millicores_start=1,
            cpu_millicores_end=2,
            memory_bytes_start=3,
            memory_bytes_end=4,
        ),
    )
    return encode(altered(record, allocated=size)).decode()


@pytest.mark.parametrize(
    "name",
    [
        *("specversion", "organization_id", "cpu_millicores", "cpu_millicores_start"),
        *("memory_max_bytes", "start", "expected", "unknown"),
    ],
)
def test_a_key_twice_at_any_level_is_refused(name: str) -> None:
    sound = line().replace('"data":{', '"data":{"unknown":1,')
    (field,) = re.findall(rf'"{name}":[^,}}]+', sound)
    assert decode(sound.encode()).id
    with pytest.raises(ValueError, match="a key is given twice"):
        decode(sound.replace(field, f"{field},{field}", 1).encode())


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"sequence":0', '"sequence":-0', "-0"),
        ('"start":0.000000', '"start":"0.000000"', "text"),
        ('"region":"eu', '"region":"#eu', "begins with #"),
        ('"region":"eu', '"region":"\\u0023eu', "begins with #"),
    ],
)
def test_another_writing_of_a_value_is_refused(old: str, new: str, reason: str) -> None:
    sound = line()
    assert old in sound
    with pytest.raises(ValueError, match=reason):
        decode(sound.replace(old, new, 1).encode())


def test_white_space_and_unknown_fields_do_not_matter() -> None:
    sound = line()
    other = sound.replace(",", " , ").replace('"data":{', '"data" : {"more":[{"a":1,"a":2}],')
    assert decode(f" {other}\r".encode()) == decode(sound.encode())


def test_a_time_has_one_form() -> None:
    usage = ReplicaHistory().measured().data
    assert period(usage)
    for text in ("2026-11-23T12:00:00Z", "2026-11-23T12:00:00.000+00:00"):
        with pytest.raises(ValueError, match="expected as in"):
            period(replace(usage, charge_period_start=text))
