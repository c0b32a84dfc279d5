r"""Parse the matchers that select the relayed alerts, in Alertmanager's syntax.

`severity="critical", namespace=~"ch-.+"` is one set: all of its matchers must match. Sets are
separated by `;` or a line end, and one matching set is enough. `{}` matches every alert. Escapes
inside quotes are Alertmanager's: `\n`, `\"`, `\\`. Any other backslash is a literal backslash.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

NAME = re.compile(r"[^\s{}!=~,;\\\"'`]+")  # of the UTF-8 parser, which also accepts classic names
QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
OPERATOR = re.compile(r"=~|!=|!~|=")
SPACES = re.compile(r"[^\S\n]*")
GAP = re.compile(r"[\s;]*")  # between two sets
ESCAPE = re.compile(r'\\([n"\\])')

SPECIAL = frozenset(r"\.+*?()[]{}^$")  # without | : "critical|warning" is a set of two literals
MAX_PATTERN_BYTES = 1 << 20  # of memory per pattern: its program and its matching cache
ANY_BYTE = r"\C"  # RE2 has it; Go's regexp, and so Alertmanager, does not


class Pattern:
    """A regular expression with Alertmanager's syntax and semantics (RE2), anchored at both ends.

    RE2 matches every pattern in time linear in the text, so a label's value cannot stall the
    daemon. It is imported only for patterns that are not an alternation of literals, because it
    uses 3 MiB.
    """

    def __init__(self, text: str) -> None:
        """Compile the pattern. Raises ValueError with the reason if it is invalid."""
        self.text = text
        self._match = _compile(text)

    def matches(self, text: str) -> bool:
        """Return whether all of `text` matches."""
        return self._match(text)


class Matcher(msgspec.Struct, frozen=True):
    """One comparison of one label. A missing label counts as the empty string."""

    name: str
    operator: str
    value: str
    pattern: Pattern | None = None  # of =~ and !~

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy the matcher."""
        value = labels.get(self.name, "")
        if self.pattern is None:
            return (value == self.value) == (self.operator == "=")
        return self.pattern.matches(value) == (self.operator == "=~")


class Selector(msgspec.Struct, frozen=True):
    """Several sets of matchers, as parsed from `text`."""

    text: str
    sets: tuple[tuple[Matcher, ...], ...]

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy all matchers of at least one set."""
        for matchers in self.sets:  # loops are twice as fast as generators, for every alert
            for matcher in matchers:
                if not matcher.matches(labels):
                    break
            else:
                return True
        return False


def parse(text: str) -> Selector:
    """Return the selector. Raises ValueError naming the column, and the line if it is not 1."""
    reader = _Reader(text)
    sets = []
    reader.match(GAP)
    while reader.at < len(text):
        sets.append(reader.set())
        reader.end_of_set()
    if not sets:
        raise reader.mistake("expected a matcher")
    return Selector(text, tuple(sets))


class _Reader:
    """One pass over the text; `at` is the next character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def mistake(self, what: str, at: int | None = None) -> ValueError:
        place = self.at if at is None else at
        line = self.text.count("\n", 0, place) + 1
        column = place - self.text.rfind("\n", 0, place)
        return ValueError(f"{f'line {line}, ' if line > 1 else ''}column {column}: {what}")

    def match(self, regex: re.Pattern[str]) -> str | None:
        match = regex.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return match[0] if match else None

    def skip(self, character: str) -> bool:
        self.match(SPACES)
        found = self.text.startswith(character, self.at)
        self.at += len(character) if found else 0
        return found

    def set(self) -> tuple[Matcher, ...]:
        start = self.at
        braces = self.skip("{")
        matchers: list[Matcher] = []
        while not self.at_end(braces):
            matchers.append(self.matcher())
            if not self.skip(","):
                break
        if braces and not self.skip("}"):
            if self.at >= len(self.text):
                raise self.mistake("{ without }", start)
            raise self.mistake("expected , or }")
        return tuple(matchers)

    def at_end(self, braces: bool) -> bool:
        self.match(SPACES)
        rest = self.text[self.at : self.at + 1]
        return rest == "}" if braces else rest in {"", ";", "\n"}

    def end_of_set(self) -> None:
        self.match(SPACES)
        if self.at < len(self.text) and self.text[self.at] not in ";\n":
            raise self.mistake("expected , between matchers and ; between sets")
        self.match(GAP)

    def matcher(self) -> Matcher:
        name = self.operand("a label name")
        self.match(SPACES)
        operator = self.match(OPERATOR)
        if operator is None:
            raise self.mistake(f"expected =, !=, =~ or !~ after {name}")
        self.match(SPACES)
        start = self.at
        value = self.operand(f"a value after {operator}")
        return Matcher(name, operator, value, self.pattern(operator, value, start))

    def operand(self, expected: str) -> str:
        if self.text.startswith('"', self.at):
            quoted = self.match(QUOTED)
            if quoted is None:
                raise self.mistake('" without a closing "')
            return ESCAPE.sub(lambda m: "\n" if m[1] == "n" else m[1], quoted[1:-1])
        bare = self.match(NAME)
        if bare is None:
            raise self.mistake(f"expected {expected}")
        return bare

    def pattern(self, operator: str, value: str, start: int) -> Pattern | None:
        if "~" not in operator:
            return None
        try:
            return Pattern(value)
        except ValueError as error:
            raise self.mistake(f"invalid regular expression {value!r}: {error}", start) from error


def _compile(text: str) -> Callable[[str], bool]:
    if SPECIAL.isdisjoint(text):
        return frozenset(text.split("|")).__contains__
    import re2  # noqa: PLC0415  most configurations only have literals

    if ANY_BYTE in text.replace(r"\\", ""):
        raise ValueError(rf"invalid escape sequence: {ANY_BYTE}")
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    options.max_mem = MAX_PATTERN_BYTES
    try:
        compiled = re2.compile(text, options)
    except re2.error as error:
        (reason,) = error.args
        raise ValueError(reason.decode(errors="replace")) from error
    return lambda value: compiled.fullmatch(value) is not None
