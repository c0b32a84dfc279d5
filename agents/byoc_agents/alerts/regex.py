"""RE2's regular expressions, as Alertmanager has them, in time linear in the text.

Python's `re` backtracks: `(a+)+b` against a label of forty a's does not end, and labels are outside
input. This is a Thompson automaton instead (Russ Cox, "Regular Expression Matching Can Be Simple
And Fast"): every character is looked at once, against at most MAX_STATES states.
"""

from collections.abc import Iterable

from byoc_agents.alerts.regex_syntax import Assert, Cat, Chars, Either, Node, Repeat, parse

MAX_STATES = 5000  # of one pattern; `(a{100}){100}` would have 10,000
MAX_CACHED_MOVES = 4096  # of one pattern; forgotten as a whole when full, then learnt again
MATCHED = 0  # the number of the final state

State = tuple[Chars | Assert | None, tuple[int, ...]]  # None = go on to each of them for free
Here = frozenset[int]


class Pattern:
    """One compiled pattern. It must match the whole text, as Alertmanager anchors it."""

    def __init__(self, text: str) -> None:
        """Compile. Raises ValueError that names the column in `text`."""
        self.text = text
        self._states: list[State] = [(None, ())]
        start = self._emit(parse(text), MATCHED)
        self._start = self._closure([start], "^")
        self._moves: dict[tuple[Here, str], Here] = {}

    def matches(self, text: str) -> bool:
        """Return whether all of `text` matches."""
        here = self._start
        for character in text:
            move = self._moves.get((here, character))
            here = self._move(here, character) if move is None else move
            if not here:
                return False
        return MATCHED in self._closure(here, "$" if text else "^$")

    def _move(self, here: Here, character: str) -> Here:
        reached = [
            after
            for number in here
            for kind, then in [self._states[number]]
            if isinstance(kind, Chars) and character in kind
            for after in then
        ]
        if len(self._moves) >= MAX_CACHED_MOVES:
            self._moves.clear()
        self._moves[here, character] = there = self._closure(reached, "")
        return there

    def _closure(self, numbers: Iterable[int], passing: str) -> Here:
        """Return these states and all that can be had from them without a character."""
        found: set[int] = set()
        waiting = list(numbers)
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            kind, then = self._states[number]
            if kind is None or (isinstance(kind, Assert) and kind.kind in passing):
                waiting += then
        return frozenset(found)

    def _add(self, kind: Chars | Assert | None, then: tuple[int, ...]) -> int:
        if len(self._states) >= MAX_STATES:
            raise ValueError(f"column 1: the pattern needs more than {MAX_STATES} states")
        self._states.append((kind, then))
        return len(self._states) - 1

    def _emit(self, node: Node, then: int) -> int:
        """Add the states of `node`, which go on to `then`; return the first of them."""
        match node:
            case Chars() | Assert():
                return self._add(node, (then,))
            case Cat(parts):
                for part in reversed(parts):
                    then = self._emit(part, then)
                return then
            case Either(options):
                return self._add(None, tuple(self._emit(option, then) for option in options))
            case Repeat():
                return self._emit_repeat(node, then)

    def _emit_repeat(self, node: Repeat, then: int) -> int:
        entry = then
        if node.high is None:
            entry = self._add(None, ())
            self._states[entry] = (None, (self._emit(node.part, entry), then))
        for _ in range((node.high or node.low) - node.low):
            entry = self._add(None, (self._emit(node.part, entry), then))
        for _ in range(node.low):
            entry = self._emit(node.part, entry)
        return entry
