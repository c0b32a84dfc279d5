"""Adds the packages of the base image to the SBOM of the Python packages, and checks the result.

`python sbom.py PYPI PACKAGES ARCHITECTURE TARGET`: PYPI is what cyclonedx-py wrote, PACKAGES what
collect.py wrote. It ends with an error if the result is not valid CycloneDX.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator


def component(package: dict[str, str], architecture: str) -> dict[str, Any]:
    """Return a component with the package URL by which scanners look up vulnerabilities."""
    name, version = package["name"], package["version"]
    if package["distribution"]:
        system = package["distribution"].split("-")[0]
        url = (
            f"pkg:deb/{system}/{quote(name)}@{quote(version, safe='~+')}?arch={architecture}"
            f"&distro={package['distribution']}&upstream={quote(package['source'])}"
        )
    else:
        url = f"pkg:generic/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": url,
        "name": name,
        "version": version,
        "purl": url,
        "properties": [{"name": "byoc-agents:origin", "value": "base image"}],
    }


def main(pypi: str, packages: str, architecture: str, target: str) -> None:
    """Write the merged SBOM."""
    bom = json.loads(Path(pypi).read_text())
    added = [component(one, architecture) for one in json.loads(Path(packages).read_text())]
    bom["components"] += added
    bom["dependencies"] += [{"ref": one["bom-ref"]} for one in added]
    text = json.dumps(bom, indent=1, sort_keys=True)
    version = SchemaVersion.from_version(re.sub(r"^v", "", bom["specVersion"]))
    if problem := JsonStrictValidator(version).validate_str(text):
        raise SystemExit(f"the SBOM is not valid CycloneDX {bom['specVersion']}: {problem}")
    Path(target).write_text(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
