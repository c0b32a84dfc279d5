"""Cuts botocore's data down to what the daemons call: 0.3 of 27 MB, and 12 MiB less memory.

`python images/cut_botocore.py --in-place` does it to the botocore that it imports; with a new
folder's name instead, the cut data go there. An image cuts in place: with endpoints.json from
AWS_DATA_PATH botocore resolves endpoints another way, to other hosts for FIPS and dual stack.
"""

import gzip
import json
import shutil
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
EXAMPLES = shutil.ignore_patterns("examples-*")
PROSE = ("documentation", "documentationUrl")
NO_BUCKET = {"fn": "not", "argv": [{"fn": "isSet", "argv": [{"ref": "Bucket"}]}]}
OTHER_CALLS = ({"ref": "UseObjectLambdaEndpoint"}, {"ref": "UseS3ExpressControlEndpoint"})
OTHER_BUCKETS = ("--x-s3", "--xa-s3", "--op-s3", "arn:")  # names that the settings refuse


def cut(source: Path, target: Path) -> None:
    """Write botocore's `data` folder `source`, cut, to the new folder `target`.

    Left out are all other services and examples. Of our services' models stays what the operations
    reach, without prose; of the rules that endpoints come from, what plain bucket names reach.
    """
    target.mkdir(parents=True)
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    _write(target / "endpoints.json", endpoints(_read(source / "endpoints.json")))
    for service, operations in SERVICES.items():
        shutil.copytree(source / service, target / service, ignore=EXAMPLES)
        (file,) = (target / service).glob("*/service-2.json*")
        data = model(_read(file), operations)
        file.unlink()
        _write(file.with_name("service-2.json"), data)
        (file,) = (target / service).glob("*/endpoint-rule-set-1.json*")
        data = rules(_read(file))
        file.unlink()
        _write(file.with_name("endpoint-rule-set-1.json"), data)


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
    return {**data, **_without_prose({"operations": operations, "shapes": shapes})}


def rules(node: dict[str, Any]) -> dict[str, Any]:
    """Return a tree of endpoint rules without those for other buckets and calls than ours."""
    if "rules" not in node:
        return node
    return node | {"rules": [rules(one) for one in node["rules"] if not _of_others(one)]}


def _of_others(rule: dict[str, Any]) -> bool:
    """Return whether it is for directory buckets, Outposts, ARNs, or calls we do not make."""
    return any(
        one == NO_BUCKET
        or one["fn"] == "aws.parseArn"
        or any(other in one["argv"] for other in OTHER_CALLS)
        or (one["fn"] == "stringEquals" and _names_another(one["argv"]))
        for one in rule["conditions"]
    )


def _names_another(arguments: list[Any]) -> bool:
    return any(one in OTHER_BUCKETS for one in arguments if isinstance(one, str))


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


def main(argument: str) -> None:
    """Cut the data of the botocore that is installed with this Python."""
    own = Path(botocore.__file__).parent / "data"
    if argument != "--in-place":
        cut(own, Path(argument))
        return
    new = own.with_name("data.new")
    cut(own, new)
    shutil.rmtree(own)
    new.rename(own)


if __name__ == "__main__":
    main(*sys.argv[1:])
