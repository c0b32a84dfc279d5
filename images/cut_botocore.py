"""Cuts the pinned botocore's data down to what the agents call: less to load, less to keep.

`python images/cut_botocore.py TARGET` writes a folder for AWS_DATA_PATH. Kept whole are the rules
and partitions that endpoints come from; of the models, what the operations reach, without prose.
"""

import gzip
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore

SERVICES = {  # what `agents` calls, and the credentials that botocore fetches for it
    "s3": ("GetObject", "HeadBucket", "ListObjectsV2", "PutObject"),
    "sqs": ("SendMessageBatch",),
    "sts": ("AssumeRoleWithWebIdentity",),
}
PROSE = ("documentation", "documentationUrl")


def cut(source: Path, target: Path) -> None:
    """Write the cut copy of botocore's `data` folder `source` into the new folder `target`."""
    target.mkdir(parents=True)
    _write(target / "endpoints.json", endpoints(_read(source / "endpoints.json")))
    for service, operations in SERVICES.items():
        (file,) = source.glob(f"{service}/*/service-2.json*")
        place = target / service / file.parent.name
        place.mkdir(parents=True)
        _write(place / "service-2.json", model(_read(file), operations))


def endpoints(data: dict[str, Any]) -> dict[str, Any]:
    """Return every partition with all its regions, but only our services."""
    partitions = [one | {"services": _ours(one["services"])} for one in data["partitions"]]
    return data | {"partitions": partitions}


def model(data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a service's model with these operations and the shapes that they reach."""
    operations = {name: data["operations"][name] for name in names}
    reached: set[str] = set()
    waiting = list(_shapes_in(operations))
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _shapes_in(data["shapes"][name])
    shapes = {name: shape for name, shape in data["shapes"].items() if name in reached}
    return data | _without_prose({"operations": operations, "shapes": shapes})


def _ours(services: dict[str, Any]) -> dict[str, Any]:
    return {name: services[name] for name in SERVICES if name in services}


def _shapes_in(node: Any) -> Iterator[str]:
    """Give the names behind every `{"shape": NAME}` below a node."""
    if isinstance(node, dict):
        if isinstance(node.get("shape"), str):
            yield node["shape"]
        node = list(node.values())
    for child in node if isinstance(node, list) else ():
        yield from _shapes_in(child)


def _without_prose(node: Any) -> Any:
    """Drop documentation texts. A member that is called so is a mapping, and stays."""
    if isinstance(node, dict):
        return {
            key: _without_prose(value)
            for key, value in node.items()
            if not (key in PROSE and isinstance(value, str))
        }
    return [_without_prose(one) for one in node] if isinstance(node, list) else node


def _read(file: Path) -> dict[str, Any]:
    raw = file.read_bytes()
    return dict(json.loads(gzip.decompress(raw) if file.suffix == ".gz" else raw))


def _write(file: Path, data: dict[str, Any]) -> None:
    file.write_text(json.dumps(data, separators=(",", ":")))


if __name__ == "__main__":
    cut(Path(botocore.__file__).parent / "data", Path(sys.argv[1]))
