"""`byoc-agents completion SHELL`: a completion script, made from the help of the commands.

The script completes commands, daemons, subcommands and options. It is static: using it starts no
program.
"""

import argparse
import contextlib
import io
import re
from collections.abc import Sequence

from byoc_agents.app import cli
from byoc_agents.app.run import DAEMONS, OPTIONAL_DAEMONS

SUBCOMMANDS = {
    "ledger": ("show", "verify", "checkpoint", "prove", "report"),
    "dead-letters": ("list", "resend"),
    "access": (
        *("list", "show", "approve", "deny", "revoke", "kill", "status", "submit", "sign", "check"),
        *("forget-replica", "policy", "sql", "init-ca", "report", "evidence"),
    ),
}

BASH = """_byoc_agents() {{
  local words
  case "$COMP_CWORD:${{COMP_WORDS[1]}}" in
    1:*) words="{commands}" ;;
{cases}
  esac
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _byoc_agents byoc-agents
"""
ZSH = "#compdef byoc-agents\nautoload -U +X bashcompinit && bashcompinit\n"


def main(argv: Sequence[str]) -> int:
    """Print the script for one shell; return 0."""
    parser = argparse.ArgumentParser(
        prog="byoc-agents completion",
        description="Print a completion script for a shell.",
        epilog=f"example: {cli.COMMANDS['completion'].example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SCRIPTS, help="the shell that will read the script")
    print(SCRIPTS[parser.parse_args(argv).shell](), end="")  # noqa: T201  a command prints
    return 0


def bash_script() -> str:
    """Return the script for bash."""
    cases = "\n".join(
        f'    *:{name}) words="{" ".join(words)}" ;;' for name, words in words_of_commands().items()
    )
    return BASH.format(commands=" ".join(cli.COMMANDS), cases=cases)


def zsh_script() -> str:
    """Return the script for zsh, which can read bash's."""
    return ZSH + bash_script()


def fish_script() -> str:
    """Return the script for fish."""
    lines = ["complete -c byoc-agents -f"]
    for name, command in cli.COMMANDS.items():
        summary = command.summary.replace("'", "\\'")
        start = f"complete -c byoc-agents -n __fish_use_subcommand -a {name}"
        lines.append(f"{start} -d '{summary}'")
    lines += [
        f"complete -c byoc-agents -n '__fish_seen_subcommand_from {name}' -a '{' '.join(words)}'"
        for name, words in words_of_commands().items()
        if words
    ]
    return "\n".join(lines) + "\n"


SCRIPTS = {"bash": bash_script, "zsh": zsh_script, "fish": fish_script}


def words_of_commands() -> dict[str, list[str]]:
    """Return command -> the words that may follow it: daemons, subcommands, options."""
    from byoc_agents.policy.account_checks import ACCOUNT_CHECKS  # noqa: PLC0415  loads the daemons
    from byoc_agents.policy.cli import COMMANDS as POLICIES  # noqa: PLC0415  likewise

    words: dict[str, list[str]] = {name: [] for name in cli.COMMANDS}
    for name in ("run", "drain", "check-config"):
        words[name] = [*DAEMONS, *OPTIONAL_DAEMONS]
    words["policy"] = [*POLICIES, *ACCOUNT_CHECKS, *DAEMONS, *OPTIONAL_DAEMONS]
    words["completion"] = [*SCRIPTS]
    for name, subcommands in SUBCOMMANDS.items():
        words[name] = [*subcommands]
    for name in set(words) - {"version"}:
        own = ACCOUNT_CHECKS if name == "policy" else SUBCOMMANDS.get(name, ())
        pages = [[name]] + [[name, one] for one in own]
        options = {option for page in pages for option in _options_of(page)}
        words[name] += sorted(options)
    return words


def _options_of(command: list[str]) -> set[str]:
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        cli.main([*command, "--help"])
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", page.getvalue()))
