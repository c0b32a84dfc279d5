"""An image with nft and its libraries, and nothing else: what `sidecars.egressRules` needs."""

import hashlib
import io
import json
import re
import shutil
import tarfile
from pathlib import Path

from lab.real.netlab.namespaces import run

IMAGE = "byoc-test/nft:1"


def write_layer(path: Path) -> None:
    """Write the files of the image as an archive."""
    nft = str(shutil.which("nft"))
    linked = re.findall(r"(/\S+) \(0x", run("ldd", nft))
    with tarfile.open(path, "w", dereference=True) as tar:
        for file in (nft, *linked):
            tar.add(file, file.lstrip("/"))


def write_image(path: Path) -> None:
    """Write the image as `docker save` does, for containerd to import."""
    layer = path.with_suffix(".layer")
    write_layer(layer)
    digest = hashlib.sha256(layer.read_bytes()).hexdigest()
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    entry = {"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}
    with tarfile.open(path, "w") as tar:
        tar.add(layer, "layer.tar")
        for name, content in (("config.json", config), ("manifest.json", [entry])):
            data = json.dumps(content).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    layer.unlink()
