"""The chart with the access path off is the chart without its files, byte for byte.

This finds a file of the access path that has an effect although the path is off. It does not find a
change of a template that both share (`_checks`, `_env`, `networkpolicies`, `clickhouse.yaml`,
`values.yaml`), because the reduced chart has it too: only the stored renders guard those, in
`lab/real/chart/renders`: see `lab.real.chart.golden`.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from lab.real.chart import render
from lab.real.chart.render import CI
from lab.real.parts import helm

ACCESS, TAILNET = (render.CHART / "ci" / f"{name}-values.yaml" for name in ("access", "tailnet"))
MONITORED = (
    *("--set", "monitoring.prometheusRules=true", "--set", "monitoring.dashboards=true"),
    *("--api-versions", "monitoring.coreos.com/v1"),
)
PARTS = (
    *("templates/accessbroker.yaml", "templates/tailnet.yaml"),
    *("templates/ingress.yaml", "templates/supportview.yaml"),
    *("rules/access.yaml", "dashboards/byoc-access.json", "files/access-listener.xml"),
)


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the chart without the files of the access path."""
    chart = tmp_path_factory.mktemp("reduced") / "byoc-agents"
    shutil.copytree(render.CHART, chart)
    for part in PARTS:
        (chart / part).unlink()
    return chart


def template(chart: Path, values: Path) -> subprocess.CompletedProcess[str]:
    where = ("--namespace", render.NAMESPACE, "--kube-version", render.NEW)
    more = ("-f", str(values), *MONITORED)
    return render.run(helm.VERSIONS[0], "template", render.RELEASE, str(chart), *more, *where)


@pytest.mark.parametrize(
    "values", [one for one in CI if one not in {ACCESS, TAILNET}], ids=render.name
)
def test_with_access_off_the_render_is_that_of_a_chart_without_its_files(
    reduced: Path, values: Path
) -> None:
    """Byte for byte, with the rules and dashboards of monitoring on as well."""
    without = template(reduced, values)
    assert without.returncode == 0, without.stderr
    assert without.stdout
    assert template(render.CHART, values).stdout == without.stdout


@pytest.mark.parametrize("values", [ACCESS, TAILNET], ids=render.name)
def test_with_access_on_the_chart_needs_its_files(reduced: Path, values: Path) -> None:
    """The control of the test above."""
    assert template(render.CHART, values).returncode == 0
    assert template(reduced, values).stdout != template(render.CHART, values).stdout
