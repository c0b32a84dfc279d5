"""Run one harness under atheris: `python -m lab.fuzz.target NAME CORPUS [libFuzzer's options]`.

It runs until its time is over or there is a finding, whose input is then stored at
`-artifact_prefix`. Only `byoc_agents` is instrumented, when it is imported.
"""

import sys

import atheris


def main() -> None:
    """Run the harness until the end of its time."""
    with atheris.instrument_imports(include=["byoc_agents"]):
        from lab.fuzz.harnesses import HARNESSES  # noqa: PLC0415  under the instrumentation
    name, corpus, *options = sys.argv[1:]
    atheris.Setup([sys.argv[0], corpus, *options], HARNESSES[name].feed)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
