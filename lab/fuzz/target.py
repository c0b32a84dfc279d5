"""One harness under atheris: `python -m lab.fuzz.target NAME CORPUS [libFuzzer's options]`.

Runs until its time is over or something is found; then the input lies where `-artifact_prefix`
says. The coverage counted is that of `agents`, which is instrumented as it is imported.
"""

import sys

import atheris


def main() -> None:
    """Fuzz."""
    with atheris.instrument_imports(include=["byoc_agents"]):
        from lab.fuzz.harnesses import HARNESSES  # noqa: PLC0415  under the instrumentation
    name, corpus, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], corpus, *options], HARNESSES[name].feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
