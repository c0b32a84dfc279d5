"""Which SBOM and which pins are attested for an image."""

import argparse
from pathlib import Path

import pytest

from images.publish import OWN_PINS, PINS, provenance, sbom_of

ROOT = Path(__file__).parents[3]
OPTIONS = argparse.Namespace(
    source="git+https://example.com/owner/name@refs/tags/v1", builder="b", invocation="i"
)


def test_an_image_with_packages_of_its_own_has_its_own_sbom(tmp_path: Path) -> None:
    shared, own = tmp_path / "sbom.json", tmp_path / "sbom-access-broker.json"
    shared.touch()
    own.touch()
    found = {name: sbom_of(name, shared) for name in ("billing-scraper", "access-broker")}
    assert found == {"billing-scraper": shared, "access-broker": own}


@pytest.mark.parametrize("name", ["billing-scraper", "access-broker"])
def test_the_provenance_names_the_pins_of_the_image(name: str) -> None:
    about = {"base.name": "base", "revision": "r", "title": name, "version": "1", "created": "c"}
    _, _, *pins = provenance(about, OPTIONS)["buildDefinition"]["resolvedDependencies"]
    assert [pin["uri"] for pin in pins] == [*PINS, *OWN_PINS.get(name, ())]
    assert all((ROOT / pin["uri"]).is_file() for pin in pins)
