"""`byoc-agents ledger show` and `verify`, as their users see them."""

import asyncio
import gzip
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from byoc_agents.app.cloudevents import encode
from byoc_agents.report import main
from byoc_agents.report.bodies import events_in, plain
from byoc_agents.schema import EXAMPLES
from tests.unit.ledger.ledger_fakes import files, ledger, message, refused
from tests.unit.report.ledger_example import BUCKET, write_example_ledger

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("example")
    asyncio.run(write_example_ledger(directory, hours=8))
    return directory


@pytest.fixture
def state_dir(example: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example, tmp_path / "state"))


def shown(capsys: Output) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_prints_all_daemons_by_time(state_dir: Path, capsys: Output) -> None:
    assert main(["show", str(state_dir), "--json"]) == 0
    found = shown(capsys)
    assert {event["daemon"] for event in found} == {
        "billing-scraper",
        "state-exporter",
        "alert-forwarder",
    }
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    assert sum("refused" in event for event in found) == 3


@pytest.mark.parametrize(
    ("filters", "key", "values"),
    [
        (["--type", "byoc.alert.*"], "type", {"byoc.alert.v1"}),
        (["--destination", "s3://*"], "destination", {BUCKET}),
        (["--daemon", "state-exporter"], "daemon", {"state-exporter"}),
        (["--id", f"{3:032x}"], "id", {f"{3:032x}"}),
    ],
    ids=["type", "destination", "daemon", "id"],
)
def test_show_filters(
    filters: list[str], key: str, values: set[str], state_dir: Path, capsys: Output
) -> None:
    assert main(["show", str(state_dir), "--json", *filters]) == 0
    assert {event.get(key) for event in shown(capsys)} == values


def test_show_takes_a_span_of_time(state_dir: Path, capsys: Output) -> None:
    span = ["--since", "2026-11-23T13:00Z", "--until", "2026-11-23T14:00:00+00:00"]
    assert main(["show", str(state_dir), "--json", *span]) == 0
    times = {event["time"] for event in shown(capsys)}
    assert (min(times), max(times)) == ("2026-11-23T13:00:00.000Z", "2026-11-23T13:45:00.000Z")


def test_show_says_how_each_send_ended(state_dir: Path, capsys: Output) -> None:
    assert main(["show", str(state_dir)]) == 0
    text = capsys.readouterr().out
    for words in ("ok 200", "rejected", "unknown", "timeout", "REFUSED", "etag-", "status 422"):
        assert words in text


def test_show_prints_the_exact_content_of_one_message(state_dir: Path, capsys: Output) -> None:
    assert main(["show", str(state_dir), "--json", "--type", "byoc.billing.*"]) == 0
    last = shown(capsys)[-1]
    assert main(["show", str(state_dir), "--id", last["id"], "--body"]) == 0
    records = shown(capsys)
    assert len(records) == last["records"] == 15
    assert records[0]["data"]["organization_id"] == "org-1"


def test_show_prints_the_exact_bytes(state_dir: Path, capfdbinary: Any) -> None:
    assert main(["show", str(state_dir), "--json", "--type", "byoc.billing.*"]) == 0
    last = json.loads(capfdbinary.readouterr().out.splitlines()[-1])
    assert main(["show", str(state_dir), "--id", last["id"], "--body", "--raw"]) == 0
    assert capfdbinary.readouterr().out == Path(last["body"]).read_bytes()


async def test_show_says_when_no_bytes_are_kept(tmp_path: Path, capsys: Output) -> None:
    await write_example_ledger(tmp_path, hours=1, keep_bodies=False)
    assert main(["show", str(tmp_path), "--id", f"{0:032x}", "--body"]) == 1
    assert "no body of this id is kept" in capsys.readouterr().err


async def test_show_cannot_move_the_cursor_of_a_terminal(tmp_path: Path, capsys: Output) -> None:
    async with ledger(tmp_path / "a" / "ledger") as made:
        line = await made.intent("d", [message()])
        await made.receipt(line, [message()], refused([message()], "\x1b[2J\u202e gone"))
        made.record_refusal("host", "\x1b]0;title\x07")
    assert main(["show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "?[2J? gone" in out
    assert all(letter.isprintable() or letter == "\n" for letter in out)


def test_verify_is_well(state_dir: Path, capsys: Output) -> None:
    assert main(["verify", str(state_dir)]) == 0
    assert capsys.readouterr().out.count(": OK") == 3


def test_verify_names_file_and_line_and_exits_1(state_dir: Path, capsys: Output) -> None:
    path = files(state_dir / "billing-scraper" / "ledger")[0]
    path.write_bytes(path.read_bytes().replace(b"org-1", b"org-2", 1))
    assert main(["verify", str(state_dir), "--json"]) == 1
    verdicts = {verdict["daemon"]: verdict for verdict in shown(capsys)}
    assert [name for name, verdict in verdicts.items() if not verdict["ok"]] == ["billing-scraper"]
    assert verdicts["billing-scraper"]["problems"][0].startswith("ledger-000001.jsonl:2: changed")


def test_verify_takes_anchors(state_dir: Path, capsys: Output) -> None:
    one = ["verify", str(state_dir), "--daemon", "alert-forwarder"]
    assert main([*one, "--json"]) == 0
    head = shown(capsys)[0]["head"]
    assert main([*one, "--anchor", head]) == 0
    assert main([*one, "--anchor", f"1:{'0' * 64}"]) == 1
    assert main(["verify", str(state_dir), "--anchor", head]) == 2
    assert main([*one, "--anchor", "nonsense"]) == 2


@pytest.mark.parametrize("place", ["", "billing-scraper", "billing-scraper/ledger"])
def test_a_ledger_is_found_by_any_of_its_directories(
    place: str, state_dir: Path, capsys: Output
) -> None:
    assert main(["verify", str(state_dir / place)]) == 0
    assert "billing-scraper: OK" in capsys.readouterr().out


def test_the_state_directory_of_the_settings_is_the_default(
    state_dir: Path, capsys: Output
) -> None:
    assert main(["verify"], {"BYOC_STATE_DIR": str(state_dir)}) == 0
    assert "alert-forwarder" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["show", "--since", "yesterday"],
        ["show", "{}", "--daemon", "nobody"],
        ["show", "{}/nothing"],
        ["show", "{}", "--body"],
        ["report", "{}"],
        ["report", "{}", "--html", "{}/no/such/directory.html"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_2(argv: list[str], state_dir: Path, capsys: Output) -> None:
    assert main([part.replace("{}", str(state_dir)) for part in argv]) == 2
    assert capsys.readouterr().err


def bodies() -> Iterator[tuple[str, bytes]]:
    line = encode(EXAMPLES["byoc.alert.v1"])
    yield "json", line
    yield "array", b"[" + line + b"," + line + b"]"
    yield "lines", line + b"\n" + line + b"\n"
    yield "gzip", gzip.compress(line + b"\n")
    yield "zstd", zstandard.ZstdCompressor(write_checksum=True).compress(line + b"\n")


@pytest.mark.parametrize("body", [b for _, b in bodies()], ids=[n for n, _ in bodies()])
def test_every_form_of_a_body_can_be_read(body: bytes) -> None:
    found = events_in(body)
    assert {event["type"] for event in found} == {"byoc.alert.v1"}


@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_a_damaged_body_is_an_error(form: str) -> None:
    body = dict(bodies())[form]
    middle = len(body) // 2
    flipped = body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]
    for broken in (body[:-6], flipped, body[:4] + b"\xff" * 20):
        with pytest.raises(ValueError, match="damaged"):
            plain(broken)


def test_a_bomb_is_not_unpacked() -> None:
    huge = zstandard.ZstdCompressor().compress(bytes(65 * 1024**2))
    with pytest.raises(ValueError, match="larger"):
        plain(huge)
