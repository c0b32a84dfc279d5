r"""The syntax of RE2 patterns as far as label matchers need it: text in, a small tree out.

Every mistake is a ValueError that starts with the column, counted from 1. What a pattern means is
in `regex.py`. Left out of RE2: `\b`, `\B`, `\p{..}`, `\Q..\E`, `\C` and `(?m)`, `(?U)`.
"""

import re

import msgspec
from msgspec.structs import replace

MAX_PATTERN = 1000  # characters; a longer list of names belongs into several sets
MAX_DEPTH = 50  # groups inside groups
MAX_REPEAT = 1000  # RE2's own bound of {n,m}

Range = tuple[str, str]
NEWLINE: tuple[Range, ...] = (("\n", "\n"),)
DIGIT: tuple[Range, ...] = (("0", "9"),)
LOWER, UPPER = ("a", "z"), ("A", "Z")
WORD = (*DIGIT, LOWER, UPPER, ("_", "_"))
SPACE: tuple[Range, ...] = (("\t", "\n"), ("\f", "\r"), (" ", " "))
CLASSES = {"d": DIGIT, "w": WORD, "s": SPACE}
NAMED = {
    "alnum": (*DIGIT, LOWER, UPPER),
    "alpha": (LOWER, UPPER),
    "digit": DIGIT,
    "lower": (LOWER,),
    "upper": (UPPER,),
    "word": WORD,
    "space": (("\t", "\r"), (" ", " ")),
    "xdigit": (*DIGIT, ("a", "f"), ("A", "F")),
}
CONTROLS = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
LAST = chr(0x10FFFF)


class Chars(msgspec.Struct, frozen=True):
    """One character out of, or outside of, some ranges."""

    ranges: tuple[Range, ...]
    negated: bool = False
    fold: bool = False  # upper and lower case are the same

    def __contains__(self, character: str) -> bool:
        """Return whether the character is one of these."""
        forms = _folded(character) if self.fold else {character}
        inside = any(low <= form <= high for low, high in self.ranges for form in forms)
        return inside != self.negated


def _folded(character: str) -> set[str]:
    """Return the characters that are this one in another case, one to one as RE2 has it."""
    plain = character.casefold()
    forms = (plain, plain.upper(), character.lower(), character.upper())
    return {character, *(form for form in forms if len(form) == 1 and form.casefold() == plain)}


class Assert(msgspec.Struct, frozen=True):
    """`^` or `$`: only here may the text begin or end."""

    kind: str


class Cat(msgspec.Struct, frozen=True):
    """One after the other."""

    parts: tuple["Node", ...]


class Either(msgspec.Struct, frozen=True):
    """One of them."""

    options: tuple["Node", ...]


class Repeat(msgspec.Struct, frozen=True):
    """`part` at least `low` and at most `high` times; None = any number."""

    part: "Node"
    low: int
    high: int | None


Node = Chars | Assert | Cat | Either | Repeat


class Flags(msgspec.Struct, frozen=True):
    """`(?i)` and `(?s)`."""

    i: bool = False
    s: bool = False


def parse(text: str) -> Node:
    """Return the tree of a pattern. Raises ValueError with the column."""
    if len(text) > MAX_PATTERN:
        raise ValueError(f"column {MAX_PATTERN}: a pattern has at most {MAX_PATTERN} characters")
    reader = _Reader(text)
    node = reader.either(Flags(), 0)
    if reader.at < len(text):
        raise reader.mistake("unexpected )")
    return node


class _Reader:
    """Recursive descent over the pattern; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def mistake(self, what: str) -> ValueError:
        return ValueError(f"column {self.at + 1}: {what}")

    def skip(self, expected: str) -> bool:
        found = self.text.startswith(expected, self.at)
        self.at += len(expected) if found else 0
        return found

    def take(self, regex: str) -> re.Match[str] | None:
        match = re.compile(regex).match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match

    def next(self, what: str) -> str:
        if self.at >= len(self.text):
            raise self.mistake(what)
        self.at += 1
        return self.text[self.at - 1]

    def either(self, flags: Flags, depth: int) -> Node:
        if depth > MAX_DEPTH:
            raise self.mistake(f"more than {MAX_DEPTH} groups inside each other")
        options: list[Node] = []
        while True:
            option, flags = self.cat(flags, depth)
            options.append(option)
            if not self.skip("|"):
                return Either(tuple(options)) if len(options) > 1 else options[0]

    def cat(self, flags: Flags, depth: int) -> tuple[Node, Flags]:
        parts: list[Node] = []
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            if setting := self.take(r"\(\?([is]+)\)"):  # holds to the end of the group
                flags = _with(flags, setting[1])
            else:
                parts.append(self.repeat(self.atom(flags, depth)))
        return Cat(tuple(parts)), flags

    def repeat(self, part: Node) -> Node:
        match = self.take(r"[*+?]|\{(\d{1,9})(?:(,)(\d{1,9})?)?\}")
        if match is None:
            return part
        low, high = _bounds(match)
        if max(low, high or 0) > MAX_REPEAT or (high is not None and high < low):
            raise self.mistake(f"bad repeat {match[0]}")
        self.skip("?")  # lazy or greedy: the same strings match
        if again := self.take(r"[*+?]|\{\d"):
            raise self.mistake(f"{again[0][0]} after a repeat")
        return Repeat(part, low, high)

    def atom(self, flags: Flags, depth: int) -> Node:
        character = self.next("nothing here")
        if character == "(":
            return self.group(flags, depth)
        if character == "[":
            return self.bracket(flags)
        if character == "\\":
            return replace(self.escape(), fold=flags.i)
        if character in "^$":
            return Assert(character)
        if character in "*+?":
            self.at -= 1
            raise self.mistake(f"nothing before {character} to repeat")
        if character == ".":
            return Chars(() if flags.s else NEWLINE, negated=True)
        return Chars(((character, character),), fold=flags.i)

    def group(self, flags: Flags, depth: int) -> Node:
        opened = self.at
        if self.take(r"\?P?<\w+>") is None and self.take(r"\?") is not None:
            setting = self.take(r"([is]*):")
            if setting is None:
                raise self.mistake("unknown after (?; RE2 has no look-around")
            flags = _with(flags, setting[1])
        inside = self.either(flags, depth + 1)
        if not self.skip(")"):
            self.at = opened - 1
            raise self.mistake("( without )")
        return inside

    def escape(self) -> Chars:
        character = self.next("\\ at the end")
        if character.lower() in CLASSES:
            return Chars(CLASSES[character.lower()], negated=character.isupper())
        if character == "x" and (code := self.take(r"\{([0-9A-Fa-f]{1,6})\}|([0-9A-Fa-f]{2})")):
            number = int(code[1] or code[2], 16)
            if number > ord(LAST):
                raise self.mistake("no such character")
            return Chars(((chr(number), chr(number)),))
        if character.isalnum() and character not in CONTROLS:
            self.at -= 1
            raise self.mistake(f"unknown escape \\{character}")
        literal = CONTROLS.get(character, character)
        return Chars(((literal, literal),))

    def bracket(self, flags: Flags) -> Chars:
        opened = self.at
        negated = self.skip("^")
        ranges: list[Range] = []
        first = True
        while first or not self.skip("]"):
            if self.at >= len(self.text):
                self.at = opened - 1
                raise self.mistake("[ without ]")
            ranges += self.members()
            first = False
        return Chars(tuple(ranges), negated, flags.i)

    def members(self) -> tuple[Range, ...]:
        if named := self.take(r"\[:(\^?)(\w+):\]"):
            return self.named(named[2], negated=bool(named[1]))
        low = self.member()
        if len(low.ranges) > 1 or low.negated or not self.take(r"-(?!\])"):
            return _complement(low.ranges) if low.negated else low.ranges
        high = self.member()
        if len(high.ranges) > 1 or high.negated or high.ranges[0][0] < low.ranges[0][0]:
            raise self.mistake("bad range")
        return ((low.ranges[0][0], high.ranges[0][0]),)

    def named(self, name: str, *, negated: bool) -> tuple[Range, ...]:
        if name not in NAMED:
            raise self.mistake(f"no class [:{name}:]")
        return _complement(NAMED[name]) if negated else NAMED[name]

    def member(self) -> Chars:
        character = self.next("[ without ]")
        return self.escape() if character == "\\" else Chars(((character, character),))


def _with(flags: Flags, letters: str) -> Flags:
    return Flags(flags.i or "i" in letters, flags.s or "s" in letters)


def _bounds(match: re.Match[str]) -> tuple[int, int | None]:
    if match[1] is None:
        return {"*": (0, None), "+": (1, None), "?": (0, 1)}[match[0]]
    low = int(match[1])
    return low, (int(match[3]) if match[3] else None) if match[2] else low


def _complement(ranges: tuple[Range, ...]) -> tuple[Range, ...]:
    """Return the ranges of everything else, for a negated class inside a bracket."""
    found: list[Range] = []
    start = 0
    for low, high in sorted(ranges):
        if ord(low) > start:
            found.append((chr(start), chr(ord(low) - 1)))
        start = max(start, ord(high) + 1)
    return (*found, (chr(start), LAST))
