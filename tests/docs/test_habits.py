"""Workflows, templates and the site's navigation agree with the files that they name."""

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import byoc_agents

ROOT = Path(byoc_agents.__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


def load(path: Path) -> Any:
    # YAML 1.1 reads the key `on` as true; a loader without booleans keeps it as text.
    return yaml.load(path.read_text(), Loader=yaml.BaseLoader)


def steps(workflow: Any) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_four_workflows_exist() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "docs", "nightly", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_least_permissions_and_time_limits(path: Path) -> None:
    workflow = load(path)
    assert {"name", "on", "permissions", "jobs"} <= workflow.keys()
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"].startswith("ubuntu-")
        assert 0 < int(job["timeout-minutes"]) <= 180
        needs = job.get("needs", [])
        assert set([needs] if isinstance(needs, str) else needs) <= workflow["jobs"].keys()


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_by_its_commit_and_names_its_version(path: Path) -> None:
    for line in re.findall(r"uses: (.+)", path.read_text()):
        action, _, version = line.partition(" # ")
        assert PINNED.fullmatch(action), line
        assert re.fullmatch(r"v\d+\.\d+\.\d+", version), line


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_make_target_that_a_workflow_runs_exists(path: Path) -> None:
    workflow = load(path)
    lines = [line for step in steps(workflow) for line in step.get("run", "").splitlines()]
    called = {target for line in lines for target in re.findall(r"^make ([a-z-]+)", line)}
    for job in workflow["jobs"].values():
        rows = job.get("strategy", {}).get("matrix", {}).get("include", [])
        called |= {row["program"] for row in rows}
    assert called <= TARGETS


def test_each_step_either_runs_or_uses() -> None:
    for path in WORKFLOWS:
        assert all(("run" in step) != ("uses" in step) for step in steps(load(path)))


def test_the_unit_matrix_covers_the_documented_versions_of_python() -> None:
    matrix = load(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["unit"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={matrix['python'][0]}"
    page = (ROOT / "docs" / "contracts" / "compatibility.md").read_text()
    assert f"| Python | {matrix['python'][0]} to {matrix['python'][-1]} |" in page


def test_the_release_publishes_every_image_for_both_architectures() -> None:
    images = load(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["images"]
    commands = "\n".join(step.get("run", "") for step in images["steps"])
    builds = re.findall(r'images ARCH="(.+?)"', commands)
    assert builds == ["amd64 arm64"] * 2, "twice, to compare the digests"
    assert "merge build/images/layout build/images/amd64 build/images/arm64" in commands
    given = set(re.findall(r"--[a-z-]+", commands.partition("images/publish.py")[2]))
    assert given == {"--version", "--sboms", "--source", "--builder", "--invocation"}
    assert images["permissions"]["id-token"] == "write", "by which cosign signs without a key"


def test_owners_are_named_for_existing_paths() -> None:
    lines = (ROOT / ".github" / "CODEOWNERS").read_text().splitlines()
    for line in lines:
        if line and not line.startswith("#"):
            path, *owners = line.split()
            assert owners
            assert path == "*" or (ROOT / path.strip("/")).exists(), path


@pytest.mark.parametrize("name", ["bug.yml", "feature.yml"])
def test_an_issue_form_has_what_github_requires(name: str) -> None:
    form = load(ROOT / ".github" / "ISSUE_TEMPLATE" / name)
    assert {"name", "description", "body"} <= form.keys()
    kinds = {"markdown", "input", "textarea", "dropdown", "checkboxes"}
    assert {part["type"] for part in form["body"]} <= kinds
    ids = [part["id"] for part in form["body"] if part["type"] != "markdown"]
    assert len(ids) == len(set(ids))


def test_dependabot_watches_directories_that_exist() -> None:
    updates = load(ROOT / ".github" / "dependabot.yml")["updates"]
    assert all((ROOT / update["directory"].strip("/")).is_dir() for update in updates)


def test_the_hooks_run_the_pinned_tools_of_the_project() -> None:
    (repository,) = load(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert all(h["entry"].startswith(".venv/bin/python -m ") for h in repository["hooks"])


def pages(nav: Any) -> list[str]:
    """Return the files of a navigation tree."""
    if isinstance(nav, str):
        return [nav]
    parts = nav if isinstance(nav, list) else list(nav.values())
    return [page for part in parts for page in pages(part)]


def test_the_site_lists_every_page_once() -> None:
    docs = ROOT / "docs"
    listed = pages(load(ROOT / "mkdocs.yml")["nav"])
    assert sorted(listed) == sorted(p.relative_to(docs).as_posix() for p in docs.rglob("*.md"))


def test_a_warning_of_the_site_fails_the_build() -> None:
    """With --quiet mkdocs does not count warnings, so --strict has no effect."""
    (build,) = re.findall(r"mkdocs build .*", MAKEFILE)
    assert build == "mkdocs build --strict"
    assert "\nphase docs\n" in (ROOT / ".ci" / "run").read_text()


def test_every_decision_has_the_four_parts_and_a_row() -> None:
    adr = ROOT / "docs" / "adr"
    index = (adr / "index.md").read_text()
    decisions = sorted(adr.glob("0*.md"))
    assert len(decisions) >= 8
    for path in decisions:
        text = path.read_text()
        parts = re.findall(r"^## (\w+)$", text, re.MULTILINE)
        assert parts == ["Context", "Decision", "Consequences"], path.name
        (status,) = re.findall(r"^Status: (accepted|proposed)$", text, re.MULTILINE)
        number, title = re.findall(r"^# (\d{4}): (.+)$", text, re.MULTILINE)[0]
        assert f"| [{number}]({path.name}) | {title} | {status} |" in index


def test_every_file_of_the_reading_order_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    order = page.split("## Reading order")[1].split("## ")[0]
    files = re.findall(r"`([\w/]+\.py)`", order)
    assert len(files) >= 10
    places = (ROOT / "agents" / "byoc_agents", ROOT)
    assert [file for file in files if not any((place / file).exists() for place in places)] == []


def test_every_test_that_a_page_names_exists() -> None:
    """Pages name tests as evidence: by function, or by file, with `*` for several."""
    texts = [path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]
    named = {name for text in texts for name in re.findall(r"\btest_\w+(?:\*|\b)", text)}
    files = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("test_*.py")}
    known = files.keys() | {
        n for text in files.values() for n in re.findall(r"def (test_\w+)", text)
    }
    missing = {
        name
        for name in named
        if name not in known
        and not (name.endswith("*") and any(k.startswith(name[:-1]) for k in known))
    }
    assert missing == set()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "RELEASE.md", "CHANGELOG.md"])
def test_every_file_that_a_page_links_to_exists(name: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[\w-]+)?\)", (ROOT / name).read_text()):
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_changelog_follows_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    versions = [re.fullmatch(r"\[(\d+\.\d+\.\d+)\] - (.+)", heading) for heading in headings]
    found = {version[1]: version[2] for version in versions if version}
    assert len(found) == len(headings)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["0.1.0"])
    in_progress = [version for version, date in found.items() if date == "Unreleased"]
    assert in_progress in ([], list(found)[:1])
    allowed = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= allowed


GENERATED = {"configuration.md", "fields.md", "access-columns.md"}
WIDTH = 112


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) of a page without its tables, code and links."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.lstrip().startswith(("|", "<", "```")):
            yield number, re.sub(r"`[^`]*`|\]\([^)]*\)", "", line)


def test_the_prose_of_a_page_can_be_read_and_compared_line_by_line() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "control-plane/README.md"]
    found = [
        f"{page.relative_to(ROOT)}:{number}"
        for page in pages
        if page.name not in GENERATED
        for number, line in prose(page)
        if len(line) > WIDTH
    ]
    assert found == []


# The bodies of earlier commits are partly empty.
SINCE = "ec279e8365e88e5993f8618ed1f403a4459780a3"


def test_every_commit_says_what_it_changes_and_why() -> None:
    """`area: imperative`, and a body. Merges need none."""
    git = ["git", "-C", str(ROOT)]
    known = subprocess.run([*git, "cat-file", "-e", SINCE], check=False, capture_output=True)
    if known.returncode:
        pytest.skip(f"no history back to {SINCE[:7]} here: a shallow clone, or a release")
    log = [*git, "log", "--no-merges", "--format=%h%x00%s%x00%b%x01", f"{SINCE}..HEAD"]
    done = subprocess.run(log, check=True, capture_output=True, text=True)
    for commit in filter(None, (one.strip() for one in done.stdout.split("\x01"))):
        name, subject, body = commit.split("\x00")
        assert re.fullmatch(r"[A-Za-z0-9_./, -]+: \S.*[^.]", subject), (name, subject)
        assert body.strip(), (name, subject)
