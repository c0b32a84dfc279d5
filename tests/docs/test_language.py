"""The text is plain English: STYLE's rules as a list of words, and one glossary."""

import re
from pathlib import Path

import pytest

from lab import language

CONCEPTS = (language.ROOT / "docs" / "concepts.md").read_text()
TERMS = re.findall(r"^\| ([a-z ]+) \| [A-Z]", CONCEPTS.split("## Glossary")[1], re.MULTILINE)
REQUIRED = {
    *("daemon", "source", "target", "replica", "incarnation", "sample", "window", "record", "gap"),
    *("seal", "object", "event", "message", "spool", "checkpoint", "epoch", "sequence", "shipper"),
    *("sink", "reason", "hold", "dead letter", "destination", "gate", "ledger", "intent"),
    *("receipt", "segment", "heartbeat", "watchdog", "fingerprint", "episode", "drain"),
    *("kept body", "allocated", "quality", "fact", "rotation"),
    *("sender", "tenant", "registry", "consumer", "receiver", "compactor", "shard", "archive"),
    *("held object", "silent"),
    *("policy", "role", "request", "approval", "grant", "access broker", "kill switch", "sweep"),
    *("order", "evidence"),
}


def written(folder: Path, text: str, name: str = "page.md") -> list[str]:
    """Return the rules that a text breaks."""
    path = folder / name
    path.write_text(text)
    return [rule for _, piece in language.texts(path) for rule in rules(piece)]


def rules(text: str) -> list[str]:
    return [rule for rule, pattern in language.PATTERNS.items() if pattern.search(text)]


def test_no_file_uses_a_forbidden_construction() -> None:
    found = [str(place) for path in language.files() for place in language.places(path)]
    assert found == []


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("The queue is told the state.", "told"),
        ("The chain begins anew.", "anew"),
        ("It runs beside ClickHouse.", "beside"),
        ("Send heartbeats for ever.", "for ever"),
        ("This is no error.", "is no X"),
        ("What is lost is stated.", "what is X"),
        ("It sends what waits on disk.", "what is X"),
        ("It shows what left the machine.", "what is X"),
        ("The file lies in the state directory.", "lies in"),
        ("The role stands in the policy.", "stands in"),
        ("A dash stands for nothing.", "stands in"),
        ("BYOC_X wants a number.", "wants X"),
        ("There is one directory a daemon.", "one X a Y"),
        ("Return the figure, None where there is none.", "where for if"),
        ("The secret is read again at each look.", "a look"),
        ("The first look finds it.", "a look"),
        ("It is time that no record speaks of.", "speaks of"),
        ("The sender never hears of it.", "hears"),
        ("The forwarder lived at that time.", "life"),
        ("It is another life of the counter.", "life"),
    ],
)
def test_a_forbidden_construction_is_found(text: str, rule: str) -> None:
    assert rule in rules(text)


@pytest.mark.parametrize(
    "text",
    [
        "The task is no longer running.",
        "There is no room on the disk.",
        "What is the state of the queue?",
        "An operator who wants to resend a message uses this command.",
        "The record is stored in the bucket.",
        "The sum of both, or None if there is neither.",
        "It looks the reason up in a table where each line is a reason.",
    ],
)
def test_standard_english_is_not_reported(text: str) -> None:
    assert rules(text) == []


def test_code_in_a_page_is_not_read(tmp_path: Path) -> None:
    assert written(tmp_path, "Use `told`.\n```\necho anew\n```\n") == []
    assert written(tmp_path, "Use it anew.\n```\necho\n```\nAgain beside.\n") == ["anew", "beside"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Makefile", "demo: ## what is needed\n\t@true\n"),
        ("values.yaml", "# Taken beside it.\na: 1\n"),
        ("_env.tpl", "{{/*\nTold by the release.\n*/}}\n"),
        ("now.sql", "-- The sender is told.\nSELECT 1\n"),
        ("NOTES.txt", "The daemons are told.\n"),
    ],
)
def test_comments_of_other_files_and_notes_are_read(name: str, text: str, tmp_path: Path) -> None:
    assert len(written(tmp_path, text, name)) == 1


def test_values_of_other_files_are_not_read(tmp_path: Path) -> None:
    assert written(tmp_path, "a: 'told # anew'\nb: told\n", "values.yaml") == []


def test_comments_docstrings_and_messages_are_read_and_names_are_not(tmp_path: Path) -> None:
    source = '"""It is told."""\n# begin anew\ntold = 1\nraise ValueError("it wants a number")\n'
    assert sorted(written(tmp_path, source, "code.py")) == ["anew", "told", "wants X"]


@pytest.mark.parametrize("name", ["ship_world", "Life", "assessStory", "was_told", "LIFE_SECONDS"])
def test_a_metaphor_is_found_as_a_word_of_a_name(name: str) -> None:
    assert [found for _, found, _ in language.metaphors(f"{name} = 1\n")] == [name]


@pytest.mark.parametrize("name", ["worldwide", "lifecycle", "history", "ClickHouse", "broadcast"])
def test_a_longer_word_is_not_a_metaphor(name: str) -> None:
    assert [*language.metaphors(f"{name} = 1  # a story\n")] == []


@pytest.mark.parametrize(
    "word",
    [
        *("behaviour", "Neighbouring", "colours", "honoured", "organisation", "recognises"),
        *("summarised", "analysing", "labelled", "modelling", "centre", "licence", "judgement"),
        *("acknowledgement", "artefact", "catalogue", "fulfils", "misspelt", "writeable", "grey"),
        *("def test_the_behaviours_of_it", "SimBehaviour", "organisationId"),
    ],
)
def test_a_british_spelling_is_found_in_prose_and_names(word: str) -> None:
    assert language.SPELLING.search(word)


@pytest.mark.parametrize(
    "word",
    [
        *("behavior", "four hours", "cancelled", "cancellation", "raises", "precise", "analysis"),
        *("otherwise", "promised", "exercise", "parameters", "controller", "filled", "installs"),
        *("fulfills", "enrolled", "programmed", "specialist", "optimistic", "organization"),
    ],
)
def test_an_american_spelling_is_not_reported(word: str) -> None:
    assert language.SPELLING.search(word) is None


def test_the_glossary_defines_each_term_once() -> None:
    assert len(TERMS) == len(set(TERMS))
    assert set(TERMS) >= REQUIRED


def test_a_term_is_one_word_for_one_thing() -> None:
    """The glossary's text uses none of the words that a term replaces."""
    replaced = {"agent": "daemon", "life": "incarnation", "lives": "incarnation", "word": "message"}
    used = set(re.findall(r"[a-z]+", CONCEPTS.replace("byoc-agents", "").lower()))
    assert used & replaced.keys() == set()
