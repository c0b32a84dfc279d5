"""Measure the size an image adds to its base: our code and the packages it imports, compiled."""

from pathlib import Path

from lab.bench import image
from lab.bench.figures import Row, row
from lab.bench.lab import Lab
from lab.real.parts.install import ROOT


def measure(_lab: Lab) -> list[Row]:
    """Return the sizes of the image's files other than Python itself."""
    parts = {"packages": image.packages(), "our own code": ROOT / "agents" / "byoc_agents"}
    sizes = {name: _bytes(place) / 1e6 for name, place in parts.items()}
    whole = [sum(sizes.values())]
    return [
        row("image_size", "an image without its base", whole, "MB"),
        *[row("image_size", f"of that, {name}", [size], "MB") for name, size in sizes.items()],
    ]


def _bytes(place: Path) -> int:
    return sum(file.lstat().st_size for file in place.rglob("*") if file.is_file())
