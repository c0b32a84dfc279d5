"""Run every harness for some seconds, guided by coverage (atheris): `make fuzz`.

Prints for each parser the number of inputs, the coverage of its seeds and the coverage added.
Exits with 1 if an input was neither parsed nor refused as declared. The input is then stored in
`build/fuzz/findings`, and `python -m lab.fuzz.run --replay FILE NAME` runs it again.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from lab.fuzz.harness import Harness
from lab.fuzz.harnesses import HARNESSES

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / "build" / "fuzz"
ATHERIS = "atheris==3.0.0"
LIBRARY = PLACE / f"{ATHERIS}-py{sys.version_info[0]}{sys.version_info[1]}"
MAX_INPUT_BYTES = 16 * 1024
EXECUTED = re.compile(r"stat::number_of_executed_units:\s*(\d+)")
COVERED = re.compile(r"^#\d+\s+(\w+)\s+cov: (\d+)", re.MULTILINE)
MADE_OF = re.compile(r"ERROR: libFuzzer: (.*)|Uncaught Python exception: ===\s*(\S.*)")


class Outcome(NamedTuple):
    """The result of one harness."""

    executions: int
    seeds_covered: int
    covered: int
    finding: str  # "" where nothing was found


def main() -> int:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(HARNESSES)}; all")
    parser.add_argument("--seconds", type=int, default=30, help="for each")
    parser.add_argument("--seed", type=int, default=1, help="of libFuzzer's random numbers")
    parser.add_argument("--replay", type=Path, help="give one harness one file, without atheris")
    options = parser.parse_args()
    if options.replay:
        HARNESSES[options.names[0]].feed(options.replay.read_bytes())
        return 0
    _install()
    return _all(options.names or list(HARNESSES), options.seconds, options.seed)


def _all(names: list[str], seconds: int, seed: int) -> int:
    print(f"{'parser':20} {'executions':>12} {'coverage':>9} {'new':>6}", flush=True)
    found, total = 0, 0
    for name in names:
        outcome = _run(name, HARNESSES[name], seconds, seed)
        new = outcome.covered - outcome.seeds_covered
        row = f"{name:20} {outcome.executions:>12,} {outcome.covered:>9,} {new:>6,}"
        print(f"{row} {outcome.finding}".rstrip(), flush=True)
        total += outcome.executions
        found += bool(outcome.finding)
    print(f"fuzz: {total:,} executions, {found} findings: {'not ok' if found else 'ok'}")
    return 1 if found else 0


def _run(name: str, harness: Harness, seconds: int, seed: int) -> Outcome:
    corpus, findings = PLACE / "corpus" / name, PLACE / "findings"
    shutil.rmtree(corpus, ignore_errors=True)
    for directory in (corpus, findings):
        directory.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(harness.seeds):
        (corpus / f"seed-{number}").write_bytes(content)
    words = PLACE / f"{name}.words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in harness.words if word))
    command = [
        sys.executable, "-m", "lab.fuzz.target", name, str(corpus), f"-dict={words}",
        f"-max_total_time={seconds}", f"-seed={seed}", f"-max_len={MAX_INPUT_BYTES}",
        f"-artifact_prefix={findings}/{name}-", "-timeout=10", "-rss_limit_mb=2048",
        "-print_final_stats=1",
    ]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": f"{LIBRARY}{os.pathsep}{ROOT}"}
    done = subprocess.run(command, env=environ, capture_output=True, check=False, cwd=ROOT)
    return _read(name, (done.stdout + done.stderr).decode(errors="replace"), done.returncode)


def _read(name: str, output: str, code: int) -> Outcome:
    (PLACE / f"{name}.log").write_text(output)
    covered = [(what, int(number)) for what, number in COVERED.findall(output)]
    begun = next((number for what, number in covered if what == "INITED"), 0)
    executed = EXECUTED.search(output)
    finding = ""
    if code:
        why = MADE_OF.search(output)
        finding = f"FOUND {(why[2] or why[1]) if why else f'exit {code}'}; build/fuzz/{name}.log"
    return Outcome(
        int(executed[1]) if executed else 0, begun, max((n for _, n in covered), default=0), finding
    )


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02X}" for byte in word)


def _install() -> None:
    """Fetch atheris into a directory next to .venv, once."""
    if not LIBRARY.exists():
        shutil.rmtree(PLACE, ignore_errors=True)
        partial = PLACE / "partial"
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "--no-deps", "--target", str(partial), ATHERIS], check=True)
        partial.rename(LIBRARY)


if __name__ == "__main__":
    sys.exit(main())
