"""The images' sizes, where `make images` has built them: it leaves `build/images.json`."""

import json

from tests.bench.figures import Row, row
from tests.bench.lab import Lab
from tests.real.parts.install import ROOT

SIZES = ROOT / "build" / "images.json"  # {"name": bytes}


def measure(_lab: Lab) -> list[Row]:
    """Return a row an image; none, and a word about it, where there is no image."""
    if not SIZES.exists():
        print(f"image_size: no {SIZES.relative_to(ROOT)}: build the images first")
        return []
    sizes = json.loads(SIZES.read_text())
    return [row("image_size", f"image {n}", [size / 1e6], "MB") for n, size in sizes.items()]
