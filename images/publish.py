"""Copies the images of an OCI layout to a registry, signs them and attests how they were made.

`python images/publish.py LAYOUT REPOSITORY --version 0.2.0 --sboms DIR ...` does this for each
image, with skopeo and cosign: copy, sign the digest, and attach three in-toto attestations (DSSE):
an SBOM per architecture (CycloneDX), the provenance (SLSA 1.0) and the VEX document (OpenVEX).
It prints `NAME DIGEST` for each. Cosign signs without a key, by the identity of the workflow, or
with `--key FILE`, without the public log.
"""

import argparse
import hashlib
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PINS = ("constraints/runtime.txt", "constraints/images.txt")
OWN_PINS = {"access-broker": ("constraints/access.txt",)}  # of layers that only one image has
LABEL = "org.opencontainers.image."


def run(*command: str) -> None:
    """Run a program; its output is shown. Raises CalledProcessError if it fails."""
    subprocess.run(command, check=True)


def blob(layout: Path, descriptor: dict[str, Any]) -> Any:
    """Return the JSON that a descriptor of the layout names."""
    return json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes())


def labels(layout: Path, index: dict[str, Any]) -> dict[str, str]:
    """Return the labels of an image; all its architectures have the same, except for the base."""
    manifest = blob(layout, blob(layout, index)["manifests"][0])
    found: dict[str, str] = blob(layout, manifest["config"])["config"]["Labels"]
    return {name.removeprefix(LABEL): value for name, value in found.items()}


def provenance(about: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Return a predicate of https://slsa.dev/provenance/v1 for one image."""
    name, _, digest = about["base.name"].partition("@")
    base: dict[str, Any] = {"uri": f"docker://{name}"}
    if digest:
        base["digest"] = {"sha256": digest.removeprefix("sha256:")}
    pins = [
        {"uri": path, "digest": {"sha256": hashlib.sha256((ROOT / path).read_bytes()).hexdigest()}}
        for path in (*PINS, *OWN_PINS.get(about["title"], ()))
    ]
    source = {"uri": options.source, "digest": {"gitCommit": about["revision"]}}
    return {
        "buildDefinition": {
            "buildType": f"{options.source.partition('@')[0]}/images/Dockerfile",
            "externalParameters": {"source": options.source, "target": about["title"]},
            "internalParameters": {"version": about["version"], "created": about["created"]},
            "resolvedDependencies": [source, base, *pins],
        },
        "runDetails": {
            "builder": {"id": options.builder},
            "metadata": {"invocationId": options.invocation},
        },
    }


def sbom_of(name: str, file: Path) -> Path:
    """Return the image's own SBOM `sbom-NAME.json` next to `sbom.json`, else `sbom.json`."""
    own = file.with_name(f"{file.stem}-{name}{file.suffix}")
    return own if own.exists() else file


def publish(index: dict[str, Any], options: argparse.Namespace) -> str:
    """Copy, sign and attest one image, return its digest."""
    name = index["annotations"][f"{LABEL}ref.name"]
    repository, digest = f"{options.repository}/{name}", str(index["digest"])
    plain = ["--dest-tls-verify=false"] if options.plain_http else []
    run(
        *("skopeo", "--insecure-policy", "copy", "--quiet", "--all", "--preserve-digests", *plain),
        *(f"oci:{options.layout}:{name}", f"docker://{repository}:{options.version}"),
    )
    flags = ["--yes"]
    flags += ["--key", options.key, "--tlog-upload=false"] if options.key else []
    flags += ["--allow-http-registry"] if options.plain_http else []
    target = f"{repository}@{digest}"
    run("cosign", "sign", "--recursive", *flags, target)
    with tempfile.TemporaryDirectory() as directory:
        made = Path(directory) / "provenance.json"
        made.write_text(json.dumps(provenance(labels(options.layout, index), options)))
        documents = [("cyclonedx", sbom_of(name, file)) for file in sorted(options.sboms)]
        documents += [("slsaprovenance1", made), ("openvex", ROOT / "images/vex.json")]
        for kind, file in documents:
            run("cosign", "attest", "--type", kind, "--predicate", str(file), *flags, target)
    return f"{name} {digest}"


def main() -> None:
    """Read the arguments and publish every image of the layout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("layout", type=Path)
    parser.add_argument("repository")
    parser.add_argument("--version", required=True, help="the tag")
    parser.add_argument("--sboms", type=Path, nargs="+", required=True, help="one per architecture")
    parser.add_argument("--source", required=True, help="git+https://HOST/OWNER/NAME@REF")
    parser.add_argument("--builder", required=True, help="URI of what builds: the workflow")
    parser.add_argument("--invocation", required=True, help="URI of this run")
    parser.add_argument("--key", help="a private key instead of the workflow's identity")
    parser.add_argument("--plain-http", action="store_true", help="for a registry on loopback")
    options = parser.parse_args()
    content = json.loads((options.layout / "index.json").read_bytes())
    for line in [publish(index, options) for index in content["manifests"]]:
        print(line)


if __name__ == "__main__":
    main()
