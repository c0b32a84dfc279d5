"""The page for the security reviewer: complete, escaped, and loading nothing."""

import asyncio
import base64
import hashlib
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

import byoc_agents.report
from byoc_agents.errors import Reason, SendError
from byoc_agents.ledger.query import Filter, RefusedConnections, Send
from byoc_agents.message import Message
from byoc_agents.report import main
from byoc_agents.report.summary import MAX_ROWS, Volume, series_of, span_of, summarize
from byoc_agents.schema import EXAMPLES, fields_of
from tests.unit.ledger.ledger_fakes import files, ledger
from tests.unit.report.ledger_example import BUCKET, CONTROL_PLANE, QUEUE, write_example_ledger

STATIC = Path(byoc_agents.report.__file__).parent / "static"
LOADS = {"src", "href", "srcset", "action", "data", "poster", "formaction", "ping", "style"}
EVIL = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"


class Reader(HTMLParser):
    """A parser that collects the parts of a page as a browser would."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def report(directory: Path, *filters: str) -> str:
    page = directory.parent / f"{directory.name}.html"
    assert main(["report", str(directory), "--html", str(page), *filters]) in {0, 1}
    return page.read_text()


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("example")
    asyncio.run(write_example_ledger(directory, hours=8))
    return directory


@pytest.fixture
def state_dir(example: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example, tmp_path / "state"))


def test_it_shows_who_what_and_how_it_ended(state_dir: Path) -> None:
    text = Reader(report(state_dir)).text
    for words in (BUCKET, QUEUE, CONTROL_PLANE, "169.254.169.254:80", "302 of https://", "etag-"):
        assert words in text
    assert text.count("the chain is unbroken") == 3


def test_it_shows_every_schema_with_its_fields_and_a_real_example(state_dir: Path) -> None:
    page = report(state_dir)
    text = Reader(page).text
    for name, event in EXAMPLES.items():
        assert name in text
        assert all(field.path in text for field in fields_of(type(event)))
    assert "480 events in the newest 32 kept bodies: no field outside the schema" in text
    assert page.count("A real event, the newest that was kept") == 3
    assert page.count("A made-up event") == 3


def test_it_loads_nothing_and_says_so_to_the_browser(state_dir: Path) -> None:
    page = Reader(report(state_dir))
    names = {tag for tag, _ in page.tags}
    assert not names & {"link", "img", "iframe", "object", "embed", "form", "base", "video"}
    for tag, attributes in page.tags:
        for name in LOADS & attributes.keys():
            assert (attributes[name] or "").startswith("#"), f"{tag} {name}"
        assert not any(name.startswith("on") for name in attributes)
    (policy,) = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    static = [(STATIC / name).read_text() for name in ("style.css", "report.js")]
    hashes = [base64.b64encode(hashlib.sha256(t.encode()).digest()) for t in static]
    style, script = (digest.decode() for digest in hashes)
    assert policy == (
        f"default-src 'none'; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
        "base-uri 'none'; form-action 'none'"
    )


async def test_everything_that_a_ledger_holds_is_escaped(tmp_path: Path) -> None:
    message = Message(EVIL, EVIL, b'{"type": "' + EVIL.encode() + b'"', 0, content_type=EVIL)
    async with ledger(tmp_path / EVIL.replace("/", "") / "ledger", keep_bodies=True) as made:
        line = await made.intent(EVIL, [message])
        await made.receipt(line, [message], [SendError(Reason.REJECTED, EVIL)])
        made.record_refusal(EVIL, EVIL)
    page = report(tmp_path)
    assert "<img" not in page
    assert [tag for tag, _ in Reader(page).tags].count("script") == 1
    assert "<img src=x onerror=alert(1)>" in Reader(page).text


def test_a_broken_chain_stands_at_the_top_and_exits_1(state_dir: Path) -> None:
    path = files(state_dir / "billing-scraper" / "ledger")[0]
    path.write_bytes(path.read_bytes().replace(b"org-1", b"org-2", 1))
    page = state_dir / "page.html"
    assert main(["report", str(state_dir), "--html", str(page)]) == 1
    text = Reader(page.read_text()).text
    assert "billing-scraper: the chain is BROKEN" in text
    assert text.index("ledger-000001.jsonl:2: changed") < text.index("destinations")


async def test_a_field_outside_the_schema_stands_out(tmp_path: Path) -> None:
    body = b'{"type": "byoc.alert.v1", "data": {"query_text": "SELECT 1"}}'
    odd = Message("1", "byoc.alert.v1", body, 0)
    new = Message("2", "byoc.unheard.v1", b"{}", 0)
    async with ledger(tmp_path / "a" / "ledger", keep_bodies=True) as made:
        await made.intent("d", [odd, new])
    text = Reader(report(tmp_path)).text
    assert "not in the schema: data.query_text" in text
    assert "NOT a schema of this version" in text


def test_filters_hold_for_the_page(state_dir: Path) -> None:
    text = Reader(report(state_dir, "--type", "byoc.alert.v1", "--since", "2026-11-23T14:00Z")).text
    assert QUEUE not in text.split("Every send")[-1]
    assert "only type byoc.alert.v1" in text


async def test_a_ledger_without_a_send_gives_a_page(tmp_path: Path) -> None:
    async with ledger(tmp_path / "a" / "ledger"):
        pass
    assert "Nothing was sent in this period." in Reader(report(tmp_path)).text


def test_the_page_can_go_to_stdout(state_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(state_dir), "--html", "-"]) == 0
    assert capsys.readouterr().out.startswith("<!doctype html>")


# Sums and charts.


def a_send(number: int, *, reason: str = "ok", size: int = 10) -> Send:
    return Send(
        daemon="a",
        sequence=number,
        time=f"2026-11-{1 + number // 1440:02}T{number // 60 % 24:02}:{number % 60:02}:00.000Z",
        destination="d",
        id=str(number),
        type="t",
        bytes=size,
        sha256="",
        events=2,
        content_type="",
        reason=reason,
    )


def test_the_sums_are_of_all_sends_and_the_rows_of_the_newest() -> None:
    summary = summarize(a_send(n, reason="ok" if n % 2 else "timeout") for n in range(5000))
    assert (summary.all.total.confirmed, summary.all.total.other) == (2500, 2500)
    assert (summary.all.total.confirmed_bytes, summary.all.events) == (25_000, 5000)
    assert [send.id for send in (summary.rows[0], summary.rows[-1])] == ["3000", "4999"]
    assert len(summary.rows) == MAX_ROWS


def test_different_refusals_are_bounded_and_all_are_counted() -> None:
    refusals = (
        RefusedConnections(daemon="a", sequence=n, time="t", refused="host", detail=str(n), count=2)
        for n in range(5000)
    )
    summary = summarize(refusals)
    assert len(summary.refusals) <= 501
    assert summary.refused == sum(one.count for one in summary.refusals.values()) == 10_000


@pytest.mark.parametrize(
    ("minutes", "word"),
    [
        (1, "minute"),
        (180, "minute"),
        (181, "hour"),
        (7 * 1440, "hour"),
        (8 * 1440, "6 hours"),
        (100 * 1440, "day"),
        (3000 * 1440, "week"),
    ],
)
def test_bars_are_of_a_readable_number_and_lose_nothing(minutes: int, word: str) -> None:
    seen = {29_000_000 + n: Volume(confirmed_bytes=3, confirmed=1) for n in range(0, minutes, 97)}
    seen |= {29_000_000 + minutes - 1: Volume(other_bytes=5, other=1)}
    span = span_of(seen)
    assert span.unit == word
    assert 12 <= span.bars <= 450
    sizes, counts = series_of(seen, span)
    assert sum(sizes.confirmed) == sum(one.confirmed_bytes for one in seen.values())
    assert sum(counts.other) == 1


def test_each_bar_of_a_chart_says_its_figures(state_dir: Path) -> None:
    page = report(state_dir)
    titles = re.findall(r"<title>(11-23 \d\d:00): ([^<]*)</title>", page)
    assert ("11-23 12:00", "4 confirmed") in titles
    assert any("not" in title for _, title in titles)


def test_a_filter_is_exact_about_its_ends() -> None:
    wanted = Filter(since="2026-11-01T00:01:00.000Z", until="2026-11-01T00:03:00.000Z")
    assert [n for n in range(5) if wanted(a_send(n))] == [1, 2]
