"""Count the words and constructions that the project does not use: `python -m lab.language`.

The text is Markdown without its code, the comments and strings of Python files (docstrings, log
events and messages), the comments of the Makefile, templates, SQL, TOML and YAML, and the notes of
the chart. No file may use them. A few metaphors are forbidden in the names of Python files, too.
The spelling is American everywhere: in names, code of pages, templates and SQL, too.

    python -m lab.language            print every place; exit code 1 if there is any
    python -m lab.language FILE ...   check only these files
"""

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MARKDOWN = (
    *("*.md", ".github/**/*.md", "docs/**/*.md", "helm/**/*.md", "images/*.md"),
    *("localstack/*.md", "constraints/*.md", "lab/**/*.md", "control-plane/*.md"),
)
PYTHON = ("agents/**/*.py", "control-plane/**/*.py", "images/*.py", "lab/**/*.py", "tests/**/*.py")
SPELLED = (
    *("Makefile", "*.toml", "*.yml", ".github/**/*.y*ml", "docs/**/*.yaml", "images/*", ".ci/run"),
    *(
        "agents/**/*.sql",
        "agents/**/*.html",
        "agents/**/*.css",
        "agents/**/*.js",
        "agents/**/*.toml",
    ),
    *("control-plane/**/*.sql", "control-plane/**/*.y*ml", "control-plane/*.toml"),
    *("helm/**/*.yaml", "helm/**/*.tpl", "helm/**/*.txt", "lab/**/*.sql", "localstack/*"),
)
# These files name the forbidden words in order to forbid them.
EXEMPT = {"lab/language.py", "tests/docs/test_language.py"}

NOUNS = "is|was|were|lies|lay|waits|waited|left|leaves|stands|stood|comes|came|goes|went"
FORBIDDEN = {
    "told": (r"\btold\b|\buntold\b", "reported, published, recorded"),
    "anew": (r"\banew\b", "again, new"),
    "beside": (r"\bbesides?\b", "next to, in addition to"),
    "for ever": (r"\bfor ever\b", "until cancelled, always"),
    "is no X": (
        r"(?<!there )\b(?:is|are|was|were|be) no (?!longer\b|more than\b|less than\b)",
        "is not a(n)",
    ),
    "what is X": (
        rf"(?<!at )\bwhat (?:{NOUNS})\b(?!\s(?:wrong|expected|missing)\b)(?![^.]*\?)",
        "name the thing",
    ),
    "lies in": (r"\b(?:lies?|lay|lying) (?:in|on|under|at|there|beside)\b", "is stored in, is in"),
    "stands in": (r"\b(?:stands?|stood) (?:in|on|at|there|for)\b", "exists, is in, means"),
    "wants X": (r"\bwants (?!to\b)", "expected, requires"),
    "in the midst": (r"\bin the midst\b", "during"),
    "one X a Y": (r"\bone (?:\w+ )?a (?:daemon|directory|pod|replica|file|process|line)\b", "per"),
    "who asks": (
        r"\b[Ww]ho(?:ever)? (?:asks|reads|calls|waits|has|is) \w+ (?:waits|gets)\b",
        "name",
    ),
    "where for if": (
        r"\b(?:(?:also|later|longer|none|nothing|1) where|where (?:all is well|not known))\b",
        "if, when",
    ),
    "a look": (
        r"\b(?:a|another|each|every|further|one|two|the (?:first|last|next)|this) looks?\b",
        "check, sample, reading",
    ),
    "speaks of": (r"\b(?:speaks?|spoke) (?:for|of|to)\b", "states, covers, connects to"),
    "hears": (r"\b(?:hears?|heard)\b", "receives"),
    "life": (
        r"(?<!-)\blived\b|\b(?:another|next|own|previous) (?:life|lives)\b",
        "incarnation, was running",
    ),
    "metaphor": (
        r"\b(?:exhume\w*|buried|bury|witness\w*|testimony|dice)\b",
        "the field's own term",
    ),
}
# Words that no identifier of Python has: each was replaced by the standard term.
FORBIDDEN_IN_NAMES = {
    **dict.fromkeys(("world", "worlds"), "harness, environment, simulation"),
    **dict.fromkeys(("life", "lives", "lived"), "incarnation, run"),
    **dict.fromkeys(("story", "stories"), "history, example, scenario"),
    **dict.fromkeys(("guest", "ghost", "twin"), "the role or the thing itself"),
    **dict.fromkeys(("buried", "dice", "told", "witness", "witnessed"), "the field's own term"),
}
# British stems; a part of a name counts as a word.
OUR = "behavi|col|end?eav|fav|flav|harb|hon|hum|lab|neighb|od|rig|rum|sav|vap|vig"
ISE = (
    "author|character|custom|final|general|initial|maxim|minim|normal|optim|organ|penal|priorit"
    "|random|real|recogn|sanit|serial|special|standard|summar|synchron|token|util"
)
DOUBLED = (
    "channel|counsel|dial|equal|funnel|initial|label|level|marvel|model|quarrel|signal|total"
    "|travel|tunnel"
)
BRITISH = (
    f"(?:{OUR})our",
    rf"(?:(?:{ISE})is|(?:anal|catal|paral)ys)(?:e[drs]?(?![a-z])|ing|ation)",
    f"(?:{DOUBLED})l(?:ed|er|ing)",
    r"(?:centre|fibre|theatre|litre|\bmetre)s?(?![a-z])",
    "(?:acknowledge|judge)ment|ageing|artefact|licence|defence|offence|pretence|practise",
    "(?:ana|cata|dia)logue|programmes?(?![a-z])|(?:enrol|fulfil|instal)(?!l)|skilful|wilful",
    r"learnt|(?:mis)?spelt|burnt|whilst|amongst|(?<!blue )\bgrey|mould|sceptic|writeable|sizeable",
)
SPELLING = re.compile("|".join(BRITISH), re.IGNORECASE)
PATTERNS = {name: re.compile(pattern, re.IGNORECASE) for name, (pattern, _) in FORBIDDEN.items()}
# To the end of a line, or a block of a template.
COMMENT = re.compile(r"^[^\n\"']*?(?:#+|--) [^\n]*$|/\*.*?\*/", re.DOTALL | re.MULTILINE)
WORD = re.compile(r"[A-Za-z][A-Za-z'-]*")
WORD_OF_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Place(NamedTuple):
    """One use of a forbidden construction or spelling."""

    file: str
    line: int
    text: str
    advice: str

    def __str__(self) -> str:
        """Return the place, the text, and the wording to use instead."""
        return f"{self.file}:{self.line}: {self.text!r}: use {self.advice}"


def files(root: Path = ROOT) -> list[Path]:
    """Return every file whose text is checked, sorted."""
    found = {path for pattern in (*MARKDOWN, *PYTHON, *SPELLED) for path in root.glob(pattern)}
    return sorted(path for path in found if path.is_file() and _is_checked(path.relative_to(root)))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _is_checked(name: Path) -> bool:
    skipped = {"__pycache__", "build", ".venv", "data", "versions"}
    return name.as_posix() not in EXEMPT and not skipped & set(name.parts)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number of the first line, text) for each piece of prose in a file."""
    content = path.read_text()
    if path.suffix in {".md", ".txt"}:
        yield 1, _without_code(content)
        return
    if path.suffix != ".py":
        for match in COMMENT.finditer(content):
            yield content.count("\n", 0, match.start()) + 1, match[0]
        return
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def metaphors(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield (line, identifier, advice) for each name in Python code that has a forbidden word."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            for word in WORD_OF_NAME.findall(token.string):
                if advice := FORBIDDEN_IN_NAMES.get(word.lower()):
                    yield token.start[0], token.string, advice


def _without_code(markdown: str) -> str:
    """Blank out fenced and inline code; keep the line numbers."""

    def blank(match: re.Match[str]) -> str:
        return "\n" * match[0].count("\n")

    fence = re.compile(r"^( *)(```+|~~~+).*?^\1\2[ \t]*$", re.DOTALL | re.MULTILINE)
    fenced = fence.sub(blank, markdown)
    return re.sub(r"`[^`\n]+`", blank, fenced)


def places(path: Path) -> Iterator[Place]:
    """Yield every use of a forbidden construction in a file."""
    for line, text in texts(path):
        for rule, pattern in PATTERNS.items():
            for match in pattern.finditer(text):
                number = line + text.count("\n", 0, match.start())
                yield Place(_name(path), number, match[0], FORBIDDEN[rule][1])
    if path.suffix == ".py":
        for number, name, advice in metaphors(path.read_text()):
            yield Place(_name(path), number, name, advice)
    for number, text in enumerate(path.read_text().splitlines(), 1):
        for match in SPELLING.finditer(text):
            yield Place(_name(path), number, match[0], "the American spelling")


def count_uses(path: Path) -> int:
    """Return the number of uses of forbidden constructions in a file."""
    return sum(len(one.findall(text)) for _, text in texts(path) for one in PATTERNS.values())


def words(path: Path) -> int:
    """Return the number of words of a file's prose."""
    return sum(len(WORD.findall(text)) for _, text in texts(path))


def main() -> int:
    """Run the program; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("files", nargs="*", type=Path)
    options = parser.parse_args()
    chosen = [path.resolve() for path in options.files] or files()
    found = [place for path in chosen for place in places(path)]
    for place in found:
        print(place)
    print(f"{len(found)} places in {sum(words(path) for path in chosen)} words")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
