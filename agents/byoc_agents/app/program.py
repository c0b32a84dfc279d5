"""A program with commands: `PROGRAM COMMAND [OPTIONS]`, used by both distributions.

A command is a module (or an object) with `main` and `make_parser`. It is imported when it runs, so
`--help` and `--version` take no time.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from byoc_agents.errors import ConfigError

if TYPE_CHECKING:
    from byoc_agents.app.command_line import CommandParser


class CommandModule(Protocol):
    """The code of one command."""

    @property
    def main(self) -> Callable[[Sequence[str]], int]:
        """Run the command with its arguments; return the exit code. May raise ConfigError."""
        ...

    @property
    def make_parser(self) -> "Callable[[], CommandParser]":
        """Return the parser of the arguments, from which the completion is made."""
        ...


class Command(NamedTuple):
    """A command's line in the list of commands, an example of its use, and its import."""

    summary: str
    example: str
    load: Callable[[], CommandModule]

    def parser(self, **options: Any) -> "CommandParser":
        """Return a parser with the summary as description, and the example.

        `options` are those of CommandParser. An example is `PROGRAM COMMAND ...`.
        """
        from byoc_agents.app.command_line import CommandParser  # noqa: PLC0415  no daemon needs it

        return CommandParser(
            prog=" ".join(self.example.split()[:2]),
            description=f"{self.summary[0].upper()}{self.summary[1:]}.",
            epilog=f"example: {self.example}",
            **options,
        )


@dataclass(frozen=True)
class CommandProgram:
    """One program. `completion` and `version` are added to its own commands."""

    name: str
    version: str
    own: Mapping[str, Command]
    example: str  # in the list of commands
    commands: dict[str, Command] = field(init=False)

    def __post_init__(self) -> None:
        """Add the commands that every program has."""
        name = self.name
        self.__dict__["commands"] = {
            **self.own,
            "completion": Command(
                "print a completion script for a shell",
                f"{name} completion bash > /etc/bash_completion.d/{name}",
                lambda: _CompletionCommand(self),
            ),
            "version": Command(
                "print the version", f"{name} version", lambda: _VersionCommand(self)
            ),
        }

    def main(self, arguments: Sequence[str]) -> int:
        """Run one command; return the exit code.

        0 is success, 1 is problems found, 2 is bad usage or configuration.
        """
        try:
            return self._dispatch(*(arguments or ["help"]))
        except ConfigError as error:
            sys.stderr.writelines(f"{mistake}\n" for mistake in error.mistakes)
            return 2
        except SystemExit as stop:  # argparse has printed a page or a reason
            return stop.code if isinstance(stop.code, int) else 0
        except KeyboardInterrupt:
            return 130

    def _dispatch(self, name: str, *rest: str) -> int:
        match name:
            case "--version" | "-V":
                return self._dispatch("version")
            case "help" | "-h" | "--help":
                return self._dispatch(rest[0], "--help") if rest else self._print_help()
        if name in self.commands:
            return self.commands[name].load().main(rest)
        from byoc_agents.app.command_line import suggest  # noqa: PLC0415  no daemon needs it

        known = [*self.commands, "--help", "--version"]
        hint = suggest(name, known, self.name)
        sys.stderr.write(f"{self.name}: unknown command {name!r}; {hint}\n")
        return 2

    def _print_help(self) -> int:
        commands = "".join(f"  {n:17}{one.summary}\n" for n, one in self.commands.items())
        sys.stdout.write(
            f"usage: {self.name} COMMAND [OPTIONS]\n\ncommands:\n{commands}\n"
            "options:\n  --help        print this list\n  --version     print the version\n\n"
            f"`{self.name} COMMAND --help` describes one command. For example:\n  {self.example}\n"
        )
        return 0


class _VersionCommand:
    def __init__(self, program: CommandProgram) -> None:
        self._program = program

    def make_parser(self) -> "CommandParser":
        return self._program.commands["version"].parser()

    def main(self, argv: Sequence[str]) -> int:
        self.make_parser().parse_args(argv)
        sys.stdout.write(f"{self._program.version}\n")
        return 0


class _CompletionCommand:
    def __init__(self, program: CommandProgram) -> None:
        self._program = program

    def make_parser(self) -> "CommandParser":
        from byoc_agents.app.completion import SCRIPTS  # noqa: PLC0415  for this command only

        parser = self._program.commands["completion"].parser()
        parser.add_argument("shell", choices=tuple(SCRIPTS), help="the shell that will read it")
        return parser

    def main(self, argv: Sequence[str]) -> int:
        from byoc_agents.app.completion import SCRIPTS, Completed  # noqa: PLC0415  likewise

        asked = self.make_parser().parse_args(argv)
        words = {}
        for name, command in self._program.commands.items():
            with suppress(ConfigError):  # a command of another image
                words[name] = Completed(command.summary, command.load().make_parser().words())
        sys.stdout.write(SCRIPTS[asked.shell](self._program.name, words))
        return 0
