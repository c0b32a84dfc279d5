"""Memory with a large backlog: the scraper on a spool of 1 GiB whose bucket answers 503."""

from lab.bench.figures import Row, row
from lab.bench.lab import SCRAPER, Lab, rss_mib, until
from lab.bench.spool import GIB, filled
from lab.fakes.http import reply
from lab.fakes.http import serving as serve_all

SMALL = 64 * 65536  # 4 MiB: the same messages, but few
TRIES = 5  # refused sends, after which all is in memory that a refused send needs


def measure(lab: Lab) -> list[Row]:
    """Compare the same daemon with an empty spool and with a full one."""
    size = GIB // 8 if lab.quick else GIB
    empty, full = [], []
    for _ in range(lab.runs(2)):
        empty.append(_after_refusals(lab, SMALL))
        full.append(_after_refusals(lab, size))
    more = [with_it - without for with_it, without in zip(full, empty, strict=True)]
    title = f"{size / GIB:g} GiB of backlog"
    return [
        row("backlog", f"memory with {title}, above that with 4 MiB", more, "MiB", "<= 10"),
        row("backlog", f"memory with {title}", full, "MiB"),
    ]


def _after_refusals(lab: Lab, size: int) -> float:
    state, http = lab.place("state"), lab.receivers.s3.http
    filled(state / SCRAPER, size)
    http.script = lambda _request: reply(503)
    try:
        seen = len(http.requests)
        settings = {"BYOC_STATE_DIR": str(state), "BYOC_SPOOL_MAX_BYTES": str(4 * GIB)}
        with lab.daemons(SCRAPER, **settings) as running:
            until(lambda: len(http.requests) >= seen + TRIES)
            return rss_mib(running.probe)
    finally:
        http.script = serve_all
        http.requests.clear()
