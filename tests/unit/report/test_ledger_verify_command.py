"""`ledger verify`: heads of a ledger that is gone, replicas, bounds, and files without heads."""

import shutil
from pathlib import Path

import pytest

from byoc_agents.report import main
from tests.unit.ledger.ledger_fakes import SMALL, files
from tests.unit.ledger.test_ledger_heads import run

Output = pytest.CaptureFixture[str]
SCRAPER = "billing-scraper"


def replica(
    place: Path, sends: int, daemon: str = SCRAPER, first: int = 0
) -> tuple[Path, list[str]]:
    directory = place / daemon / "ledger"
    directory.mkdir(parents=True, exist_ok=True)
    return directory, run(directory, sends, first=first)


def verify(
    capsys: Output, *arguments: object, environ: dict[str, str] | None = None
) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["verify", *map(str, arguments)], environ or {})
    out = capsys.readouterr()
    assert "Traceback" not in out.out + out.err
    return code, out.out + out.err


def write(path: Path, *heads: str) -> Path:
    path.write_text("".join(f"{head}\n" for head in heads))
    return path


def test_heads_of_a_ledger_that_is_gone_are_a_problem(tmp_path: Path, capsys: Output) -> None:
    state = tmp_path / "state"
    _, one = replica(state, 3)
    gone, two = replica(state, 3, "state-exporter")
    named = [f"{head} byoc-agents/{SCRAPER}" for head in one]
    named += [f"{head} byoc-agents/state-exporter" for head in two]
    heads = write(tmp_path / "heads", *named)
    assert verify(capsys, state, "--heads", heads)[0] == 0
    shutil.rmtree(gone.parent)
    code, text = verify(capsys, state, "--heads", heads)
    assert code == 1
    assert "kept heads named byoc-agents/state-exporter are of no ledger here" in text
    code, text = verify(capsys, state, "--heads", heads, "--daemon", SCRAPER)
    assert code == 0
    assert "state-exporter were not compared: --daemon is billing-scraper" in text


def test_a_misspelled_name_beside_a_good_head_is_a_problem(tmp_path: Path, capsys: Output) -> None:
    _, kept = replica(tmp_path / "state", 3)
    heads = write(tmp_path / "heads", f"{kept[-1]} byoc-agents/billing_scraper", kept[0])
    code, text = verify(capsys, tmp_path / "state", "--heads", heads)
    assert code == 1
    assert "byoc-agents/billing_scraper are of no ledger here" in text


def test_two_replicas_of_one_daemon_are_verified_together(tmp_path: Path, capsys: Output) -> None:
    a, one = replica(tmp_path / "a", 5)
    b, two = replica(tmp_path / "b", 8, first=100)
    assert set(one).isdisjoint(two)
    heads = write(tmp_path / "heads", *(f"{head} byoc-agents/{SCRAPER}" for head in one + two))
    code, text = verify(capsys, a, b, "--heads", heads)
    assert (code, text.count(": OK")) == (0, 2)
    assert "5 kept heads confirmed" in text
    assert "8 kept heads confirmed" in text
    shutil.rmtree(a)
    shutil.copytree(b, a)  # the other replica's history in place of its own
    assert verify(capsys, a, b, "--heads", heads)[0] == 1
    shutil.rmtree(a)
    replica(tmp_path / "a", 5, first=50)
    assert verify(capsys, a, b, "--heads", heads)[0] == 1


def test_the_heads_of_one_replica_are_chosen_by_origin(tmp_path: Path, capsys: Output) -> None:
    a, one = replica(tmp_path / "a", 5)
    _, two = replica(tmp_path / "b", 8, first=100)
    named = [f"{head} a/{SCRAPER}" for head in one] + [f"{head} b/{SCRAPER}" for head in two]
    heads = write(tmp_path / "heads", *named)
    assert verify(capsys, a, "--heads", heads)[0] == 1
    code, text = verify(capsys, a, "--heads", heads, "--origin", "a")
    assert (code, "5 kept heads confirmed" in text) == (0, True)
    assert verify(capsys, a, "--heads", heads, "--origin", "b")[0] == 1
    assert verify(capsys, a, "--heads", heads, "--origin", "c")[0] == 2


def test_the_bound_is_the_option_or_the_setting_or_the_default(
    tmp_path: Path, capsys: Output
) -> None:
    directory = tmp_path / SCRAPER / "ledger"
    kept = run(directory, 60, max_bytes=2 * SMALL)
    assert files(directory)[0].name != "ledger-000001.jsonl"
    heads = write(tmp_path / "heads", kept[-1])
    given = [directory, "--heads", heads]
    assert verify(capsys, *given, "--max-bytes", "128Ki")[0] == 0
    assert verify(capsys, *given, environ={"BYOC_LEDGER_MAX_BYTES": "128Ki"})[0] == 0
    code, text = verify(capsys, *given)
    assert code == 1
    assert "The ledger states a bound of 131072: if BYOC_LEDGER_MAX_BYTES ever had" in text
    assert "run again with --max-bytes 131072 --max-bytes 67108864" in text
    assert verify(capsys, *given, "--max-bytes", "64Mi", "--max-bytes", "128Ki")[0] == 0
    assert verify(capsys, *given, "--max-bytes", "nothing")[0] == 2
    code, text = verify(capsys, *given, environ={"BYOC_LEDGER_MAX_BYTES": "much"})
    assert (code, "BYOC_LEDGER_MAX_BYTES: much" in text) == (2, True)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff",
        b"9" * 5000 + b" " + b"A" * 43 + b"=",
        b"9" * 5000 + b":" + b"0" * 64,
        b"a\n\xc2\xb2\nA",
    ],
)
def test_what_is_no_head_is_named(content: bytes, tmp_path: Path, capsys: Output) -> None:
    directory, _ = replica(tmp_path, 1)
    (tmp_path / "heads").write_bytes(content)
    code, text = verify(capsys, directory, "--heads", tmp_path / "heads")
    assert code == 2
    assert f"{tmp_path / 'heads'}: " in text


def test_a_link_to_nothing_is_named(tmp_path: Path, capsys: Output) -> None:
    directory, _ = replica(tmp_path, 1)
    (directory / "ledger-000002.jsonl").symlink_to("/nonexistent")
    code, text = verify(capsys, directory)
    assert code == 2
    assert "None" not in text
    assert str(directory) in text
