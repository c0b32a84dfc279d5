"""Compare revisions of the project in a few figures: `python -m lab.figures [REVISION ...]`.

Without a revision it shows HEAD. `python -m lab.figures v0.1.0 HEAD` shows both, as a table in
Markdown. The product is every Python file below `agents/`. The text whose words are counted, and
the forbidden constructions, are those of `lab.language`.
"""

import argparse
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lab.language import ROOT, count_uses, files, words
from lab.names import collisions


class Figures(NamedTuple):
    """The figures of one revision."""

    lines: int  # of the product
    files: int
    collisions: int  # names of types that mean more than one thing
    forbidden: float  # uses of forbidden constructions per 1,000 words


ROWS = {
    "lines of the product": "{0.lines:,}",
    "files of the product": "{0.files:,}",
    "lines per file": "{1:.0f}",
    "type names with two meanings": "{0.collisions:,}",
    "forbidden words per 1,000 words": "{0.forbidden:.2f}",
}


def measure(root: Path) -> Figures:
    """Return the figures of a directory with the files of one revision."""
    source = root / "agents"
    product = sorted(source.rglob("*.py"))
    package = source / "byoc_agents"  # 0.1.0 had none: `agents` was the package
    text = files(root)
    total = sum(map(words, text))
    return Figures(
        lines=sum(len(path.read_text().splitlines()) for path in product),
        files=len(product),
        collisions=len(collisions(package if package.exists() else source)),
        forbidden=1000 * sum(map(count_uses, text)) / max(total, 1),
    )


def measure_revision(repository: Path, revision: str) -> Figures:
    """Return the figures of a commit, branch or tag. Raises CalledProcessError if there is none."""
    command = ["git", "-C", str(repository), "archive", "--format=tar", revision]
    archive = subprocess.run(command, capture_output=True, check=True).stdout
    with tempfile.TemporaryDirectory() as directory:
        with tarfile.open(fileobj=io.BytesIO(archive)) as files_of_revision:
            files_of_revision.extractall(directory, filter="data")
        return measure(Path(directory))


def format_table(found: dict[str, Figures]) -> str:
    """Return the figures as a table: one column per revision."""
    lines = [["figure", *found], ["---", *("---:" for _ in found)]]
    for title, form in ROWS.items():
        cells = (form.format(one, one.lines / max(one.files, 1)) for one in found.values())
        lines.append([title, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def main(argv: Sequence[str], repository: Path = ROOT) -> int:
    """Print the table. Return 2 if a revision does not exist."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", maxsplit=1)[0])
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="default: HEAD")
    names = parser.parse_args(argv).revisions or ["HEAD"]
    try:
        found = {name: measure_revision(repository, name) for name in names}
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr.decode(errors="replace"))
        return 2
    sys.stdout.write(format_table(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
