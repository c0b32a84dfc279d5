"""The parser of every command: suggestions, and the words of a completion."""

import pytest

from byoc_agents.app.command_line import CommandParser, join, nearest


def parser() -> CommandParser:
    """Return a parser with a subcommand of each form."""
    made = CommandParser(prog="made")
    made.add_argument("--state-dir")
    steps = made.add_subparsers(dest="step", required=True)
    show = steps.add_parser("show")
    show.add_argument("--since", required=True)
    form = show.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true")
    send = steps.add_parser("send")
    send.add_argument("daemon", nargs="*", choices=("scraper", "exporter"))
    send.add_argument("--all", action="store_true")
    judge = CommandParser(prog="made judge")
    judge.add_argument("--check")
    made.others = {"judge": judge}
    return made


def test_the_words_are_those_of_all_subcommands_groups_and_other_parsers() -> None:
    assert parser().words() == [
        *("show", "send", "judge", "scraper", "exporter"),
        *("--all", "--check", "--help", "--json", "--since", "--state-dir"),
    ]


def test_a_new_subcommand_is_completed_without_another_change() -> None:
    made = CommandParser()
    made.add_subparsers().add_parser("new").add_argument("--fresh")
    assert made.words() == ["new", "--fresh", "--help"]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["shw"],
            "step: invalid value 'shw': expected show or send; did you mean 'show'?",
        ),
        (["xyz"], "invalid value 'xyz': expected show or send\n"),
        (["--stat-dir", "x", "show"], "made: error: unknown argument '--stat-dir'; did you mean"),
        (
            ["show", "--snice", "x"],
            "made show: error: unknown argument '--snice'; did you",
        ),
        (["show", "--since=1", "--jsno"], "unknown argument '--jsno'; did you mean '--json'?"),
        (["show", "--since=1", "--jsno=2"], "unknown argument '--jsno'; did you mean '--json'?"),
        (["show", "--since=1", "--xyz"], "unknown argument '--xyz'; see `made show --help`"),
        (["show", "--since=1", "more"], "unknown argument 'more'; see `made show --help`"),
        (["show", "--since=1", "-x"], "unknown argument '-x'; see `made show --help`"),
        (["show"], "the following arguments are required: --since"),
        (
            ["send", "scraper", "export"],
            "invalid value 'export': expected scraper or exporter; ",
        ),
    ],
    ids=" ".join,
)
def test_a_mistake_suggests_what_was_probably_meant(
    typed: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parser().parse_args(typed)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        ["--state-dir", "x", "show", "--since", "1"],
        ["--state", "x", "show", "--sin", "1"],  # an abbreviation
        ["show", "--since=--x", "--json"],
        ["send"],
        ["send", "--", "scraper"],
        ["send", "--all", "scraper", "exporter"],
    ],
    ids=" ".join,
)
def test_what_argparse_accepts_is_accepted(typed: list[str]) -> None:
    assert parser().parse_args(typed).step in typed


def test_words_are_joined_and_compared() -> None:
    assert [join("a"), join("ab"), join("abc")] == ["a", "a or b", "a, b or c"]
    assert (nearest("jsno", ["json", "help"]), nearest("x", ["json"])) == ("json", "")
