"""The report page in a real browser: it renders, filters, can be read, and loads nothing."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from byoc_agents.errors import Reason, SendError
from byoc_agents.message import Message
from byoc_agents.report import main
from lab.real.parts.chromium import Tab, tab
from tests.unit.ledger.ledger_fakes import ledger
from tests.unit.report.ledger_example import BUCKET, write_example_ledger

SHOWN = "document.getElementById('shown').textContent"
VISIBLE = "[...document.querySelectorAll('#sends tbody tr')].filter(r => !r.hidden).length"
TYPE_IN = """(() => { const find = document.getElementById('find'); find.value = %r;
  find.dispatchEvent(new Event('input')); })()"""
CHOOSE = """(() => { const choice = document.querySelector('select[data-column="%d"]');
  choice.value = %r; choice.dispatchEvent(new Event('change')); })()"""
OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BLOCKED = """new Promise((done) => {
  document.addEventListener('securitypolicyviolation', (e) => done(e.effectiveDirective));
  const image = new Image(); image.src = 'http://127.0.0.1:9/x'; document.body.append(image); })"""
# The lowest WCAG contrast of any text on the page, and which text it is.
CONTRAST = """(() => {
  const parts = (color) => color.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = parts(getComputedStyle(e).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const ratios = [];
  document.querySelectorAll('details').forEach((d) => { d.open = true; });
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !element.checkVisibility()) continue;
    const style = getComputedStyle(element);
    const ink = parts(element.closest('svg') ? style.fill : style.color);
    const pair = [light(ink), light(ground(element))].sort((a, b) => b - a);
    ratios.push([(pair[0] + 0.05) / (pair[1] + 0.05), texts.currentNode.data.trim()]);
  }
  return ratios.sort((a, b) => a[0] - b[0])[0];
})()"""
PAINTED = """[...document.querySelectorAll('rect.ok')].map((bar) => bar.getBoundingClientRect())
  .filter((box) => box.height >= 1 && box.width >= 1).length"""


@pytest.fixture
async def browser() -> AsyncIterator[Tab]:
    async with tab() as page:
        yield page


async def page_of(state_dir: Path) -> str:
    """Return the URL of the report."""
    file = state_dir / "report.html"
    assert main(["report", str(state_dir), "--html", str(file)]) == 0
    return file.as_uri()


async def test_it_renders_and_loads_nothing(tmp_path: Path, browser: Tab) -> None:
    url = await page_of(await write_example_ledger(tmp_path))
    await browser.open(url)
    assert await browser.evaluate(SHOWN) == "418 of 418 shown"  # its script ran
    assert await browser.evaluate(PAINTED) > 100
    assert browser.requests == [url]
    assert browser.console == []


async def test_the_browser_stops_whatever_it_would_load(tmp_path: Path, browser: Tab) -> None:
    """The control of the test above: the page's own policy refuses an image put into it."""
    url = await page_of(await write_example_ledger(tmp_path, hours=1))
    await browser.open(url)
    assert await browser.evaluate(BLOCKED) == "img-src"
    assert browser.console


async def test_its_table_filters(tmp_path: Path, browser: Tab) -> None:
    await browser.open(await page_of(await write_example_ledger(tmp_path)))
    await browser.evaluate(CHOOSE % (2, BUCKET))
    assert await browser.evaluate(VISIBLE) == 120
    await browser.evaluate(TYPE_IN % "2026-11-24 OK")
    assert await browser.evaluate(VISIBLE) == 72
    assert await browser.evaluate(SHOWN) == "72 of 418 shown"
    await browser.evaluate(TYPE_IN % "")
    await browser.evaluate(CHOOSE % (2, ""))
    await browser.evaluate(CHOOSE % (4, "timeout"))
    assert await browser.evaluate(VISIBLE) == 14


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_can_be_read(scheme: str, tmp_path: Path, browser: Tab) -> None:
    """WCAG AA: 4.5 for every text; nothing is cut off on a small screen."""
    await browser.look(1280, 900, scheme)
    await browser.open(await page_of(await write_example_ledger(tmp_path)))
    assert len(await browser.screenshot()) > 20_000
    ratio, text = await browser.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    for width in (1280, 768, 390):
        await browser.look(width, 900, scheme)
        assert await browser.evaluate(OVERFLOW) <= 0, width


async def test_nothing_in_a_ledger_becomes_part_of_the_page(tmp_path: Path, browser: Tab) -> None:
    evil = "</title></style></script><script>document.title='taken'</script><img src=x onerror='1'>"
    message = Message(evil, evil, b"[" + evil.encode(), 0, content_type=evil)
    async with ledger(tmp_path / "daemon" / "ledger", keep_bodies=True) as made:
        line = await made.intent(evil, [message])
        await made.receipt(line, [message], [SendError(Reason.REJECTED, evil)])
        made.record_refusal(evil, evil)
    url = await page_of(tmp_path)
    await browser.open(url)
    assert await browser.evaluate("document.title") == "Outbound data: byoc-agents"
    assert await browser.evaluate("document.querySelectorAll('img').length") == 0
    assert await browser.evaluate("document.querySelectorAll('script').length") == 1
    assert await browser.evaluate(SHOWN) == "1 of 1 shown"
    assert browser.requests == [url]
