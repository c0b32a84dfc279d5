"""Signatures and attestations of the images, verified without a network by cosign and openssl."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab.real.parts import install
from lab.real.parts.docker import BASE
from lab.real.parts.images import ACCESS_BROKER, ALL_IN_ONE, DAEMONS
from lab.real.parts.process import PartError
from lab.real.parts.publication import BUILDER, SOURCE, Publication, make_key, publish, run
from lab.real.parts.registry import registry

OFFLINE = ("--insecure-ignore-tlog", "--offline", "--local-image")  # a key has no public log
TYPES = {
    "cyclonedx": "https://cyclonedx.org/bom",
    "slsaprovenance1": "https://slsa.dev/provenance/v1",
    "openvex": "https://openvex.dev/ns",
}
KIND = "dev.cosignproject.cosign/"


@pytest.fixture(scope="module")
def published(
    layout: Path, foreign_layout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Publication]:
    place = tmp_path_factory.mktemp("published")
    with registry(place / "registry") as running:
        yield publish(running, place, [layout, foreign_layout])


@pytest.fixture(scope="module")
def carried(published: Publication, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that a customer carries into a network without a registry of ours."""
    return save(published, DAEMONS[0], tmp_path_factory.mktemp("carried") / "image")


def save(published: Publication, name: str, target: Path) -> Path:
    run("cosign", "save", "--allow-http-registry", "--dir", str(target), published.reference(name))
    return target


def verify(key: Path, image: Path) -> Any:
    """Return what cosign says about the signature of a saved image."""
    return json.loads(run("cosign", "verify", "--key", str(key), *OFFLINE, str(image)))


def attested(key: Path, image: Path, kind: str) -> list[Any]:
    """Return the in-toto statements of one type of a saved image, all verified."""
    command = ("cosign", "verify-attestation", "--key", str(key), "--type", kind)
    lines = run(*command, *OFFLINE, str(image)).splitlines()
    return [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]


@dataclass(frozen=True)
class Saved:
    """The files of a saved image."""

    place: Path

    def blob(self, digest: str) -> Path:
        return self.place / "blobs" / digest.replace(":", "/")

    def read(self, digest: str) -> Any:
        return json.loads(self.blob(digest).read_bytes())

    def entry(self, kind: str) -> str:
        """Return the digest of what cosign keeps under a kind: imageIndex, sigs, atts."""
        index = json.loads((self.place / "index.json").read_bytes())
        (found,) = [
            one["digest"] for one in index["manifests"] if one["annotations"]["kind"] == KIND + kind
        ]
        return str(found)

    def layers(self, kind: str) -> list[dict[str, Any]]:
        layers: list[dict[str, Any]] = self.read(self.entry(kind))["layers"]
        return layers


def openssl_accepts(key: Path, signed: bytes, signature: bytes, directory: Path) -> bool:
    """Verify with a tool that knows nothing of cosign: ECDSA P-256 over SHA-256."""
    (directory / "signed").write_bytes(signed)
    (directory / "signature").write_bytes(signature)
    command = ["openssl", "dgst", "-sha256", "-verify", str(key), "-signature"]
    done = subprocess.run(
        [*command, str(directory / "signature"), str(directory / "signed")],
        capture_output=True,
        check=False,
    )
    return done.returncode == 0


def signed_bytes(envelope: dict[str, Any]) -> bytes:
    """Return what a DSSE signature covers: the type and the payload, each with its length."""
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


@pytest.mark.parametrize("name", [*DAEMONS, ACCESS_BROKER, ALL_IN_ONE])
def test_the_digest_of_every_image_is_signed(
    published: Publication, tmp_path: Path, name: str
) -> None:
    (claim,) = verify(published.key, save(published, name, tmp_path / "image"))
    assert claim["critical"]["image"]["docker-manifest-digest"] == published.digests[name]


def revision(layout: Path) -> str:
    """Return the commit that the images of a layout name."""
    (*_, last) = json.loads((layout / "manifest.json").read_bytes())
    config = json.loads((layout / last["Config"]).read_bytes())["config"]
    found = str(config["Labels"]["org.opencontainers.image.revision"])
    assert re.fullmatch("[0-9a-f]{40}", found)
    return found


def test_an_image_has_an_sbom_for_each_architecture_provenance_and_vex(
    published: Publication, carried: Path, layout: Path
) -> None:
    digest = published.digests[DAEMONS[0]].removeprefix("sha256:")
    found = {kind: attested(published.key, carried, kind) for kind in TYPES}
    assert {kind: len(statements) for kind, statements in found.items()} == {
        "cyclonedx": 2,
        "slsaprovenance1": 1,
        "openvex": 1,
    }
    for kind, statements in found.items():
        for statement in statements:
            assert statement["predicateType"].startswith(TYPES[kind])
            assert [one["digest"] for one in statement["subject"]] == [{"sha256": digest}]
    purls = [
        part["purl"]
        for statement in found["cyclonedx"]
        for part in statement["predicate"]["components"]
        if part["name"] == "libc6"
    ]
    assert sorted(re.findall(r"arch=(\w+)", " ".join(purls))) == ["amd64", "arm64"]
    (statement,) = found["slsaprovenance1"]
    build = statement["predicate"]["buildDefinition"]
    assert build["externalParameters"] == {"source": SOURCE, "target": DAEMONS[0]}
    assert statement["predicate"]["runDetails"]["builder"]["id"] == BUILDER
    commit, base, *pins = build["resolvedDependencies"]
    assert commit == {"uri": SOURCE, "digest": {"gitCommit": revision(layout)}}
    assert base == {"uri": f"docker://{BASE}"}, "a local base has no digest"
    for pin in pins:
        content = (install.ROOT / pin["uri"]).read_bytes()
        assert pin["digest"] == {"sha256": hashlib.sha256(content).hexdigest()}


def test_the_access_broker_has_attestations_of_its_own_packages(
    published: Publication, tmp_path: Path
) -> None:
    image = save(published, ACCESS_BROKER, tmp_path / "image")
    for statement in attested(published.key, image, "cyclonedx"):
        names = {part["name"] for part in statement["predicate"]["components"]}
        assert {"aiohttp", "cryptography"} <= names
    (statement,) = attested(published.key, image, "slsaprovenance1")
    pins = statement["predicate"]["buildDefinition"]["resolvedDependencies"][2:]
    assert "constraints/access.txt" in {pin["uri"] for pin in pins}


def test_openssl_verifies_the_signature_and_every_attestation(
    published: Publication, carried: Path, tmp_path: Path
) -> None:
    saved = Saved(carried)
    (layer,) = saved.layers("sigs")
    payload = saved.blob(layer["digest"]).read_bytes()
    signature = base64.b64decode(layer["annotations"][f"{KIND}signature"])
    assert openssl_accepts(published.key, payload, signature, tmp_path)
    assert not openssl_accepts(published.key, payload[:-1] + b" ", signature, tmp_path)
    envelopes = [saved.read(layer["digest"]) for layer in saved.layers("atts")]
    assert len(envelopes) == 4
    for envelope in envelopes:
        (signature,) = (base64.b64decode(one["sig"]) for one in envelope["signatures"])
        signed = signed_bytes(envelope)
        assert openssl_accepts(published.key, signed, signature, tmp_path)
        changed = bytearray(signed)
        changed[len(changed) // 2] ^= 1
        assert not openssl_accepts(published.key, bytes(changed), signature, tmp_path)


def changed_copy(carried: Path, target: Path, digest: str) -> Path:
    """Copy a saved image with one bit of one blob changed."""
    shutil.copytree(carried, target)
    file = Saved(target).blob(digest)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    return target


def test_a_changed_byte_of_what_was_signed_is_found(
    published: Publication, carried: Path, tmp_path: Path
) -> None:
    saved = Saved(carried)
    (payload,) = saved.layers("sigs")
    with pytest.raises(PartError, match=r"ended with \d+"):
        verify(published.key, changed_copy(carried, tmp_path / "payload", payload["digest"]))
    whole = {kind: 2 if kind == "cyclonedx" else 1 for kind in TYPES}
    assert verified(published.key, carried) == whole
    for number, envelope in enumerate(saved.layers("atts")):
        image = changed_copy(carried, tmp_path / f"envelope-{number}", envelope["digest"])
        left = verified(published.key, image)
        assert sum(left.values()) == sum(whole.values()) - 1, "all but the changed one"


def verified(key: Path, image: Path) -> dict[str, int]:
    """Return how many attestations of each type cosign accepts; it refuses if there is none."""
    counts = dict.fromkeys(TYPES, 0)
    for kind in TYPES:
        with suppress(PartError):
            counts[kind] = len(attested(key, image, kind))
    return counts


def test_a_changed_byte_of_the_image_is_found_when_it_is_copied(
    published: Publication, carried: Path, tmp_path: Path
) -> None:
    """The signed digest covers the index, that the manifests, and those the layers."""
    saved = Saved(carried)
    index = saved.entry("imageIndex")
    manifest = saved.read(index)["manifests"][0]["digest"]
    content = saved.read(manifest)
    parts = [manifest, content["config"]["digest"], content["layers"][-1]["digest"]]
    for number, digest in enumerate(parts):
        image = changed_copy(carried, tmp_path / str(number), digest)
        with pytest.raises(PartError, match=r"ended with \d+"):
            copy(image, tmp_path / f"copy-{number}")
    copy(carried, tmp_path / "copy")
    image = changed_copy(carried, tmp_path / "index", index)
    with pytest.raises(PartError, match=r"ended with \d+"):
        verify(published.key, image)


def copy(image: Path, target: Path) -> None:
    """Copy the image of a saved folder, as a customer's mirror does."""
    only = Path(shutil.copytree(image, target.with_name(f"{target.name}-source")))
    index = json.loads((only / "index.json").read_bytes())
    index["manifests"] = index["manifests"][:1]  # without the signatures
    (only / "index.json").write_text(json.dumps(index))
    command = ("skopeo", "--insecure-policy", "copy", "--all", "--preserve-digests", "--quiet")
    run(*command, f"oci:{only}", f"oci:{target}:copied")


def commands() -> list[str]:
    """Return the commands of the page for customers, one per line."""
    page = (install.ROOT / "docs/verify.md").read_text()
    blocks = re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def test_the_pages_commands_with_a_key_verify_a_saved_image(
    published: Publication, carried: Path, tmp_path: Path
) -> None:
    """They run exactly as written, next to the folder and the key."""
    (tmp_path / "image").symlink_to(carried)
    shutil.copy(published.key, tmp_path / "cosign.pub")
    lines = [line for line in commands() if "--key cosign.pub" in line]
    assert len(lines) == 4, "the signature and three types of attestations"
    for line in lines:
        assert json.loads(run("bash", "-c", line, cwd=tmp_path).strip().splitlines()[0])
    (tmp_path / "cosign.pub").write_text(published.key.read_text().replace("A", "B", 1))
    for line in lines:
        with pytest.raises(PartError, match=r"ended with \d+"):
            run("bash", "-c", line, cwd=tmp_path)


def test_every_option_of_cosign_on_the_page_exists() -> None:
    called = [line.split() for line in commands() if line.startswith("cosign ")]
    assert called
    for _, command, *words in called:
        known = run("cosign", command, "--help")
        assert [word for word in words if word.startswith("--") and f"{word}=" not in known] == []


def test_the_key_of_somebody_else_verifies_nothing(carried: Path, tmp_path: Path) -> None:
    run("cosign", "generate-key-pair", cwd=tmp_path)
    with pytest.raises(PartError, match=r"ended with \d+"):
        verify(tmp_path / "cosign.pub", carried)


def test_what_the_vex_document_says_is_true_of_the_images(layout: Path) -> None:
    """An error in a function that no file names is not reached."""
    document = json.loads((install.ROOT / "images/vex.json").read_text())
    assert document["@context"].startswith("https://openvex.dev/ns/v0.2")
    components = {
        part["purl"].partition("@")[0]
        for part in json.loads((layout / "sbom.json").read_text())["components"]
    }
    for statement in document["statements"]:
        products = statement["products"]
        assert [one["@id"] for one in products] == [
            f"pkg:oci/{name}" for name in (*DAEMONS, ACCESS_BROKER, ALL_IN_ONE)
        ]
        assert {part["@id"] for one in products for part in one["subcomponents"]} <= components
        assert statement["status"] == "not_affected"
        assert statement["justification"].startswith("vulnerable_code_not_")
    assert naming(layout, b"regexec") == {"libc.so.6"}
    assert naming(layout, b"zipOpen") == set()
    assert naming(layout, b"deflate") >= {"libz.so.1"}, "a name that is there is found"


def naming(layout: Path, symbol: bytes) -> set[str]:
    """Return the programs and libraries that import or export a symbol."""
    found = set()
    images = json.loads((layout / "manifest.json").read_bytes())
    for layer in {layer for image in images for layer in image["Layers"]}:
        with tarfile.open(layout / layer) as archive:
            for entry in archive:
                file = archive.extractfile(entry) if entry.isfile() else None
                data = file.read() if file else b""
                if data.startswith(b"\x7fELF") and b"\0" + symbol + b"\0" in data:
                    found.add(Path(entry.name).name)
    return found


WORKFLOW = "https://github.com/owner/byoc-agents/.github/workflows/release.yml@refs/tags/v0.2.0"
ISSUER = "https://token.actions.githubusercontent.com"
# The certificate of a workflow, as Fulcio issues it: the identity is a URI, an extension names
# the issuer of the workflow's token.
LEAF = f"""
subjectAltName = critical, URI:{WORKFLOW}
keyUsage = critical, digitalSignature
extendedKeyUsage = codeSigning
1.3.6.1.4.1.57264.1.1 = DER:{ISSUER.encode().hex(":")}
"""


def certify(place: Path) -> None:
    """Make a key of cosign's, an authority `root.pem`, and `leaf.pem` for the key and WORKFLOW."""
    make_key(place)
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=test")
    run("openssl", "req", "-x509", *curve, "-keyout", "root.key", "-out", "root.pem", cwd=place)
    run("openssl", "req", *curve, "-keyout", "request.key", "-out", "request.csr", cwd=place)
    (place / "leaf.cnf").write_text(LEAF)
    made = ("-in", "request.csr", "-force_pubkey", "cosign.pub", "-out", "leaf.pem")
    signed = ("-CA", "root.pem", "-CAkey", "root.key", "-CAcreateserial", "-extfile", "leaf.cnf")
    run("openssl", "x509", "-req", *made, *signed, cwd=place)


def test_only_the_workflow_at_its_tag_is_accepted_without_a_key(
    published: Publication, tmp_path: Path
) -> None:
    """With an authority of the test, since Sigstore's cannot be reached: no log, no timestamp."""
    certify(tmp_path)
    certificate = ("--certificate", "leaf.pem", "--certificate-chain", "root.pem")
    flags = ("--yes", "--tlog-upload=false", "--allow-http-registry", "--key", "cosign.key")
    run("cosign", "sign", *flags, *certificate, published.reference(ALL_IN_ONE), cwd=tmp_path)
    image = save(published, ALL_IN_ONE, tmp_path / "image")

    def accepted(workflow: str, issuer: str) -> bool:
        identity = ("--certificate-identity", workflow, "--certificate-oidc-issuer", issuer)
        trusted = ("--ca-roots", "root.pem", "--insecure-ignore-sct")
        try:
            return bool(
                run("cosign", "verify", *trusted, *identity, *OFFLINE, str(image), cwd=tmp_path)
            )
        except PartError:
            return False

    assert accepted(WORKFLOW, ISSUER)
    assert not accepted(WORKFLOW.replace("v0.2.0", "v0.2.1"), ISSUER)
    assert not accepted(WORKFLOW.replace("owner", "other"), ISSUER)
    assert not accepted(WORKFLOW, "https://token.example.com")
