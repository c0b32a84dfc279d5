"""Writes the images as an OCI layout whose bytes depend on nothing but the files and the arguments.

`python oci.py write LAYERS LAYOUT --own OWN --architecture amd64 ...` makes a layer of each folder
in LAYERS and five images of them, for one architecture. A folder in OWN/NAME is a layer that only
the image NAME has, above the others. `python oci.py merge LAYOUT PART ...` makes an index of the
same images of several architectures. Times are the commit's, owners and modes are fixed, and
names are sorted, so that two builds of one commit have the same digests.

`manifest.json` is for `docker load`, which reads the same files.
"""

import argparse
import datetime as dt
import gzip
import hashlib
import io
import json
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

DAEMONS = ("billing-scraper", "state-exporter", "alert-forwarder")
DESCRIPTIONS = {
    "billing-scraper": "Meters ClickHouse's CPU and memory into an S3 bucket.",
    "state-exporter": "Reports the state of ClickHouse to an SQS FIFO queue.",
    "alert-forwarder": "Relays Alertmanager's alerts, signed, over HTTPS.",
    "access-broker": "Opens and ends the access of the vendor's engineers.",
    "byoc-agents": "billing-scraper, state-exporter, alert-forwarder.",
}
STATE = "var/lib/byoc-agents"  # of the spool and the ledger
STATE_OWNER = (65532, 0, 0o770)  # any uid with group 0 may write there too
# One malloc arena: the interpreter's lock lets the threads in one at a time anyway (0.6 MiB). And
# frozenlist, a list that aiohttp rarely uses, in Python: in C, it loads libstdc++ (1 MiB).
ENVIRONMENT = (
    "PATH=/usr/local/bin:/usr/bin",
    "AWS_EC2_METADATA_DISABLED=true",
    "MALLOC_ARENA_MAX=1",
    "FROZENLIST_NO_EXTENSIONS=1",
    "SSL_CERT_FILE=/opt/byoc-agents/code/ca.pem",
    "SSL_CERT_DIR=/opt/byoc-agents/code/no-other-ca",
)
SECOND = 10**9  # nanoseconds
LABEL = "org.opencontainers.image."
REFERENCE = f"{LABEL}ref.name"
KIND = "application/vnd.oci.image."
LAYOUT_VERSION = {"imageLayoutVersion": "1.0.0"}


def layer(root: Path, seconds: int) -> bytes:
    """Return a folder as a tar archive with fixed times, owners, modes and order."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix()):
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            entry.mtime = seconds
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                entry.type, entry.linkname, entry.mode = (
                    tarfile.SYMTYPE,
                    str(path.readlink()),
                    0o777,
                )
                archive.addfile(entry)
            elif stat.S_ISDIR(mode):
                entry.type, entry.mode = tarfile.DIRTYPE, 0o755
                if entry.name == STATE:
                    entry.uid, entry.gid, entry.mode = STATE_OWNER
                archive.addfile(entry)
            else:
                program = path.parent.name == "bin" or ".so" in path.suffixes
                entry.mode = 0o755 if program else 0o644
                entry.size = path.stat().st_size
                with path.open("rb") as file:
                    archive.addfile(entry, file)
    return written.getvalue()


def compress(data: bytes) -> bytes:
    """Return gzip without a time and a name."""
    return gzip.compress(data, compresslevel=9, mtime=0)


class Layout:
    """A folder of blobs, each named by its SHA-256."""

    def __init__(self, place: Path) -> None:
        self.place = place
        (place / "blobs/sha256").mkdir(parents=True, exist_ok=True)
        self._write("oci-layout", LAYOUT_VERSION)

    def add(self, data: bytes, kind: str, **more: Any) -> dict[str, Any]:
        """Store a blob, return its descriptor."""
        name = hashlib.sha256(data).hexdigest()
        (self.place / "blobs/sha256" / name).write_bytes(data)
        about = {"mediaType": KIND + kind, "digest": f"sha256:{name}", "size": len(data)}
        return about | more

    def read(self, descriptor: dict[str, Any]) -> Any:
        """Return the JSON of a blob."""
        return json.loads((self.place / blob(descriptor)).read_bytes())

    def set_index(self, entries: list[dict[str, Any]]) -> None:
        """Say which images are here."""
        self._write(
            "index.json",
            {"schemaVersion": 2, "mediaType": f"{KIND}index.v1+json", "manifests": entries},
        )

    def _write(self, name: str, content: Any) -> None:
        (self.place / name).write_bytes(encode(content))


def encode(content: Any) -> bytes:
    """Return JSON in the one form that is used here."""
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def blob(descriptor: dict[str, Any]) -> str:
    """Return the path of a blob in its layout."""
    return "blobs/" + str(descriptor["digest"]).replace(":", "/")


class Layers(NamedTuple):
    """The layers of an image, from the lowest."""

    descriptors: list[dict[str, Any]]
    diffs: list[str]  # digests of the same layers, not compressed


def add_layers(layout: Layout, parent: Path, seconds: int) -> Layers:
    """Store a layer of each folder in `parent`; there are none if it does not exist."""
    made = Layers([], [])
    for folder in sorted(parent.iterdir()) if parent.is_dir() else ():
        data = layer(folder, seconds)
        made.diffs.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
        made.descriptors.append(layout.add(compress(data), "layer.v1.tar+gzip"))
    return made


def write(options: argparse.Namespace) -> None:
    """Write the five images of one architecture."""
    created = dt.datetime.fromisoformat(options.created).astimezone(dt.UTC)
    moment, seconds = created.strftime("%Y-%m-%dT%H:%M:%SZ"), int(created.timestamp())
    layout = Layout(options.layout)
    shared = add_layers(layout, options.layers, seconds)
    platform = {"architecture": options.architecture, "os": "linux"}
    entries, loadable = [], []
    for name, description in DESCRIPTIONS.items():
        own = add_layers(layout, options.own / name, seconds)
        layers, diffs = shared.descriptors + own.descriptors, shared.diffs + own.diffs
        labels = {
            "title": name,
            "description": description,
            "vendor": "byoc-agents",
            "licenses": "Apache-2.0",
            "version": options.version,
            "revision": options.revision,
            "created": moment,
            "base.name": options.base,
        }
        image = platform | {
            "created": moment,
            "config": {
                "User": "65532:0",
                "Env": [*ENVIRONMENT],
                "Entrypoint": ["byoc-agents"],
                "Cmd": ["run", *(DAEMONS if name == "byoc-agents" else [name])],
                "Volumes": {f"/{STATE}": {}},
                "Labels": {LABEL + key: value for key, value in labels.items()},
                "Healthcheck": {
                    "Test": ["CMD", "byoc-agents-healthcheck"],
                    "Interval": 15 * SECOND,
                    "Timeout": 5 * SECOND,
                    "StartPeriod": 30 * SECOND,
                },
            },
            "rootfs": {"type": "layers", "diff_ids": diffs},
            "history": [{"created": moment, "created_by": "images/oci.py"} for _ in diffs],
        }
        config = layout.add(encode(image), "config.v1+json")
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{KIND}manifest.v1+json",
            "config": config,
            "layers": layers,
        }
        reference = {REFERENCE: name}
        entries.append(
            layout.add(
                encode(manifest), "manifest.v1+json", platform=platform, annotations=reference
            )
        )
        tags = [f"byoc-agents/{name}:{options.version}"]
        blobs = [blob(one) for one in layers]
        loadable.append({"Config": blob(config), "RepoTags": tags, "Layers": blobs})
    layout.set_index(entries)
    (layout.place / "manifest.json").write_bytes(encode(loadable))


def merge(options: argparse.Namespace) -> None:
    """Write one layout with an index per image, and print each with its digest."""
    shutil.rmtree(options.layout, ignore_errors=True)
    layout = Layout(options.layout)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in DESCRIPTIONS}
    for part in options.parts:
        shutil.copytree(part / "blobs", layout.place / "blobs", dirs_exist_ok=True)
        for entry in json.loads((part / "index.json").read_bytes())["manifests"]:
            name = entry.pop("annotations")[REFERENCE]
            found[name].append(entry)
    entries = []
    for name, manifests in found.items():
        manifests.sort(key=lambda one: str(one["platform"]["architecture"]))
        content = {
            "schemaVersion": 2,
            "mediaType": f"{KIND}index.v1+json",
            "manifests": manifests,
        }
        entries.append(layout.add(encode(content), "index.v1+json", annotations={REFERENCE: name}))
        print(name, entries[-1]["digest"])
    layout.set_index(entries)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("write")
    one.add_argument("layers", type=Path)
    one.add_argument("layout", type=Path)
    one.add_argument("--own", type=Path, required=True)
    for name in ("architecture", "version", "revision", "created", "base"):
        one.add_argument(f"--{name}", required=True)
    one.set_defaults(run=write)
    several = commands.add_parser("merge")
    several.add_argument("layout", type=Path)
    several.add_argument("parts", type=Path, nargs="+")
    several.set_defaults(run=merge)
    options = parser.parse_args()
    options.run(options)


if __name__ == "__main__":
    main()
