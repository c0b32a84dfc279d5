"""Lint and render with Helm 3 and Helm 4 into build/chart, and write VALUES.md: `make chart`.

With `--update` it also writes the golden renders and the printed example.
"""

import sys
from pathlib import Path

from lab.real.chart import golden, reference, render
from lab.real.parts import helm, install

BUILD = install.ROOT / "build" / "chart"
PRINTED = render.CHART / "examples" / "bitnami" / "clickhouse-values.yaml"


def main(arguments: list[str]) -> int:
    """Return 1 if a lint fails."""
    reference.FILE.write_text(reference.markdown())
    BUILD.mkdir(parents=True, exist_ok=True)
    for version in helm.VERSIONS:
        for values in [*render.CI, *render.EXAMPLES]:
            done = render.run(version, "lint", "--strict", str(render.CHART), "-f", str(values))
            if done.returncode:
                print(done.stdout, done.stderr, file=sys.stderr)
                return 1
            _write(version, values)
    if "--update" in arguments:
        golden.update()
        PRINTED.write_text(render.printed(PRINTED.with_name("values.yaml")))
    print(f"{len(render.CI)} sets of values, Helm {' and '.join(helm.VERSIONS)}: {BUILD}")
    return 0


def _write(version: str, values: Path) -> None:
    called = render.name(values) if values in render.CI else f"example-{values.parent.name}"
    file = BUILD / f"{called}-helm{version[0]}.yaml"
    file.write_text(render.text(values, version=version))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
