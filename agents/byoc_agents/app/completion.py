"""Completion scripts for shells, made from the parsers of a program's commands.

A script completes commands, daemons, subcommands and options. It is static: using it starts no
program.
"""

from collections.abc import Mapping
from typing import NamedTuple

BASH = """{function}() {{
  local words
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) words="{commands}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F {function} {program}
"""
ZSH = "#compdef {program}\nautoload -U +X bashcompinit && bashcompinit\n"


class Completed(NamedTuple):
    """A command: its summary, and the words that may follow it."""

    summary: str
    words: list[str]


def bash_script(program: str, commands: Mapping[str, Completed]) -> str:
    """Return the script for bash."""
    cases = "\n".join(
        f'    *:{name}) words="{" ".join(one.words)}" ;;' for name, one in commands.items()
    )
    function = f"_{program.replace('-', '_')}"
    return BASH.format(function=function, program=program, commands=" ".join(commands), cases=cases)


def zsh_script(program: str, commands: Mapping[str, Completed]) -> str:
    """Return the script for zsh, which can read bash's."""
    return ZSH.format(program=program) + bash_script(program, commands)


def fish_script(program: str, commands: Mapping[str, Completed]) -> str:
    """Return the script for fish."""
    lines = [f"complete -c {program} -f"]
    for name, one in commands.items():
        summary = one.summary.replace("'", "\\'")
        lines.append(f"complete -c {program} -n __fish_use_subcommand -a {name} -d '{summary}'")
    lines += [
        f"complete -c {program} -n '__fish_seen_subcommand_from {name}' -a '{' '.join(one.words)}'"
        for name, one in commands.items()
    ]
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}
