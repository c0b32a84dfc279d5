"""The page of `access report --html` in a real browser: it can be read, and loads nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoc_agents.access.orders import Approve, Revoke, Submit
from byoc_agents.access_commands import main
from lab.real.parts.chromium import Tab, tab
from tests.real.test_real_ledger_report import BLOCKED, CONTRAST, OVERFLOW
from tests.unit.access.access_documents import GRANT_ID, approval_envelope, request_envelope
from tests.unit.access.scripted_broker import Harness

SECTION = f"document.getElementById('grant-{GRANT_ID}').getBoundingClientRect().height"


@pytest.fixture
async def browser() -> AsyncIterator[Tab]:
    async with tab() as page:
        yield page


@pytest.fixture
async def url(tmp_path: Path) -> str:
    """Give the page of a broker with an ended grant, and a request that waits."""
    harness = Harness(tmp_path)
    (tmp_path / "access-broker").symlink_to(harness.state)
    harness.write_policy(approval="signed")
    async with harness.running():
        request = request_envelope()
        await harness.order(Submit(envelope=request))
        await harness.order(Approve(id=GRANT_ID, envelope=approval_envelope(request)))
        await harness.order(Revoke(id=GRANT_ID, by="anna"))
        await harness.passes(1, 2)
        other = GRANT_ID.replace("0190a7c2", "0190a7c3")
        engineer = {"id": "eng-1", "name": "N" * 100}  # no place to break the line
        await harness.order(Submit(envelope=request_envelope(id=other, engineer=engineer)), "9")
    page = tmp_path / "access.html"
    assert main(["report", "--html", str(page), "--state-dir", str(tmp_path)], {}) == 0
    return page.as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read(scheme: str, url: str, browser: Tab) -> None:
    """WCAG AA: 4.5 for every text; nothing is cut off on a small screen."""
    await browser.look(1280, 900, scheme)
    await browser.open(url)
    assert await browser.evaluate(SECTION) > 20
    ratio, text = await browser.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    for width in (1280, 768, 390):
        await browser.look(width, 900, scheme)
        assert await browser.evaluate(OVERFLOW) <= 0, width
    assert browser.requests == [url]
    assert browser.console == []


async def test_light_and_dark_are_two_designs(url: str, browser: Tab) -> None:
    """The control of the test above: the scheme reaches the page."""
    found = []
    for scheme in ("light", "dark"):
        await browser.look(1280, 900, scheme)
        await browser.open(url)
        found.append(await browser.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert found[0] != found[1]


async def test_the_browser_stops_whatever_it_would_load(url: str, browser: Tab) -> None:
    await browser.open(url)
    assert await browser.evaluate(BLOCKED) == "img-src"
    assert browser.console
