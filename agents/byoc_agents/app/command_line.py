"""The parser of every command: names are suggested, and the words of a completion are derived."""

import argparse
import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TextIO

GREEN, RED, RESET = "\x1b[32m", "\x1b[31m", "\x1b[0m"


class CommandParser(argparse.ArgumentParser):
    """A parser that keeps the lines of its texts, and suggests the name that was probably meant."""

    def __init__(self, **options: Any) -> None:
        """`options` are those of ArgumentParser."""
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter} | options)
        # First word -> the parser that the command uses instead of this one after that word.
        self.others: dict[str, CommandParser] = {}

    def words(self) -> list[str]:
        """Return the words that may be typed: subcommands and choices, then all options, sorted."""
        typed = [*self._names(), *self._options()]
        for parser in [*self._subparsers_by_name().values(), *self.others.values()]:
            typed += parser.words()
        names = dict.fromkeys(word for word in typed if not word.startswith("--"))
        return [*names, *sorted({word for word in typed if word.startswith("--")})]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse, and end the program with exit code 2 if something is left.

        argparse calls it for each subcommand, so the options of a message are those of the
        subcommand that was typed.
        """
        if args is not None:
            self._refuse_unknown(args)
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self._fail_unknown(rest[0])
        return found, []

    def _refuse_unknown(self, args: Iterable[str]) -> None:
        """Report an unknown option before argparse reports what is missing because of it."""
        for argument in args:
            word = argument.partition("=")[0]
            if argument == "--" or (self._has_subcommands() and not argument.startswith("-")):
                return  # values, or the arguments of a subcommand
            if not word.startswith("--") or " " in argument:
                continue
            if not any(option.startswith(word) for option in self._options()):
                self._fail_unknown(word)

    def _fail_unknown(self, word: str) -> NoReturn:
        known = self._options() if word.startswith("-") else ()
        self.error(f"unknown argument {word!r}; {suggest(word, known, self.prog)}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        none_given = value == []  # argparse of Python 3.11 checks also that
        if action.choices is not None and not none_given and value not in action.choices:
            known = [str(one) for one in action.choices]
            expected = f"expected {join(known)}" if len(known) > 1 else f"expected {known[0]}"
            similar = nearest(str(value), known)
            hint = f"; did you mean {similar!r}?" if similar else ""
            raise argparse.ArgumentError(action, f"invalid value {value!r}: {expected}{hint}")

    def _subparsers_by_name(self) -> dict[str, "CommandParser"]:
        found: dict[str, CommandParser] = {}
        for action in self._actions:
            if isinstance(action.choices, Mapping):
                pairs = action.choices.items()
                found |= {name: one for name, one in pairs if isinstance(one, CommandParser)}
        return found

    def _has_subcommands(self) -> bool:
        return bool(self._subparsers_by_name())

    def _names(self) -> list[str]:
        positional = [action for action in self._actions if not action.option_strings]
        return [*(str(one) for a in positional for one in a.choices or ()), *self.others]

    def _options(self) -> list[str]:
        every = (option for action in self._actions for option in action.option_strings)
        return [option for option in every if option.startswith("--")]


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the known word that is most like `word`, or an empty text if none is."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def suggest(word: str, known: Iterable[str], program: str) -> str:
    """Return the end of a message about an unknown word: the nearest one, or where to look."""
    similar = nearest(word, known)
    return f"did you mean {similar!r}?" if similar else f"see `{program} --help`"


def join(words: Iterable[str]) -> str:
    """Return `a, b or c`."""
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def color_verdict(text: str, stream: TextIO, *, ok: bool) -> str:
    """Return the text in green or red if `stream` is a terminal and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"{GREEN if ok else RED}{text}{RESET}"
