"""The figures that compare two revisions of the project."""

import subprocess
from pathlib import Path

import pytest

from lab.figures import Figures, format_table, main, measure_revision

FORBIDDEN = "told"
OLD = {
    "agents/__init__.py": "",
    "agents/one.py": "class Thing:\n    pass\n",
    "agents/two.py": "class Thing:\n    pass\n\n\nclass Other:\n    pass\n",
    "README.md": f"A page that has {FORBIDDEN} us ten words, as counted.\n",
}
NEW = {
    "agents/byoc_agents/one.py": "class Thing:\n    pass\n",
    "README.md": "A page that has reported ten words, as it is counted.\n",
    "build/left.md": f"{FORBIDDEN} {FORBIDDEN}\n",
}


def git(place: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=n", "-c", "user.email=n@example.com"]
    subprocess.run(["git", "-C", str(place), *identity, *arguments], check=True)


def commit(place: Path, files: dict[str, str], tag: str) -> None:
    for name, text in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)
    git(place, "add", "--all")
    git(place, "commit", "--quiet", "--no-verify", f"--message={tag}")
    git(place, "tag", tag)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "--quiet")
    commit(tmp_path, OLD, "old")
    git(tmp_path, "rm", "--quiet", "-r", "agents")
    commit(tmp_path, NEW, "new")
    return tmp_path


def test_each_revision_is_measured_by_its_own_files(repository: Path) -> None:
    (repository / "README.md").write_text(FORBIDDEN)  # not committed
    assert measure_revision(repository, "old") == Figures(8, 3, 1, 100.0)
    assert measure_revision(repository, "new") == Figures(2, 1, 0, 0.0)


def test_the_table_has_a_column_per_revision(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["old", "HEAD"], repository) == 0
    assert capsys.readouterr().out.splitlines() == [
        "| figure | old | HEAD |",
        "| --- | ---: | ---: |",
        "| lines of the product | 8 | 2 |",
        "| files of the product | 3 | 1 |",
        "| lines per file | 3 | 2 |",
        "| type names with two meanings | 1 | 0 |",
        "| forbidden words per 1,000 words | 100.00 | 0.00 |",
    ]


def test_a_revision_without_product_has_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert "| lines per file | 0 |" in format_table({"empty": Figures(0, 0, 0, 0.0)})
    assert capsys.readouterr().out == ""


def test_a_revision_that_does_not_exist_is_reported(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["v9"], repository) == 2
    assert "v9" in capsys.readouterr().err
