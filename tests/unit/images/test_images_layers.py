"""The OCI layout depends on the files of an image and nothing else; the files that are taken."""

import argparse
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
from pathlib import Path

import pytest

from images.collect import Base, Elf
from images.oci import layer, merge, write


def tree(place: Path, mode: int, moment: int) -> Path:
    """Make a small layer, as a person with these modes and at this time has it."""
    for name in ("opt/b.py", "opt/a.py", "usr/bin/program", "usr/lib/libz.so.1"):
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(name)
    (place / "lib").symlink_to("usr/lib")
    (place / "var/lib/byoc-agents").mkdir(parents=True)
    for path in place.rglob("*"):
        if not path.is_symlink():
            path.chmod(mode | (0o100 if path.is_dir() else 0))
            os.utime(path, (moment, moment))
    return place


def test_a_layer_depends_on_names_and_contents_alone(tmp_path: Path) -> None:
    one = layer(tree(tmp_path / "one", 0o644, 1), 1_700_000_000)
    other = layer(tree(tmp_path / "two", 0o600, 2_000_000_000), 1_700_000_000)
    assert one == other
    (tmp_path / "two/opt/a.py").write_text("opt/A.py")
    assert layer(tmp_path / "two", 1_700_000_000) != one


def test_only_programs_and_libraries_may_be_run_and_only_the_state_is_the_users(
    tmp_path: Path,
) -> None:
    data = layer(tree(tmp_path / "one", 0o777, 1), 1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        entries = {one.name: one for one in archive}
    assert {name for name, one in entries.items() if one.isfile() and one.mode & 0o111} == {
        "usr/bin/program",
        "usr/lib/libz.so.1",
    }
    assert {name for name, one in entries.items() if one.uid or one.mode & 0o022} == {
        "var/lib/byoc-agents",
        "lib",
    }
    assert entries["var/lib/byoc-agents"].uid == 65532
    assert {one.mtime for one in entries.values()} == {1_700_000_000}
    assert [*entries] == sorted(entries)


def layout(place: Path, layers: Path, architecture: str) -> Path:
    """Write a layout of these layers."""
    about = {"version": "1.2.3", "revision": "r", "base": "b@sha256:0", "layers": layers}
    about |= {"own": layers.parent / "own"}
    created = "2026-11-01T12:00:00+01:00"
    write(argparse.Namespace(layout=place, architecture=architecture, created=created, **about))
    return place


def test_a_layout_holds_what_it_names(tmp_path: Path) -> None:
    tree(tmp_path / "layers/1", 0o644, 1)
    place = layout(tmp_path / "layout", tmp_path / "layers", "arm64")
    blobs = {file.name: file.read_bytes() for file in (place / "blobs/sha256").iterdir()}
    assert all(hashlib.sha256(data).hexdigest() == name for name, data in blobs.items())
    index = json.loads((place / "index.json").read_text())
    assert len(index["manifests"]) == 5
    for entry in index["manifests"]:
        manifest = json.loads(blobs[entry["digest"].removeprefix("sha256:")])
        config = json.loads(blobs[manifest["config"]["digest"].removeprefix("sha256:")])
        assert (config["architecture"], config["created"]) == ("arm64", "2026-11-01T11:00:00Z")
        for part, diff in zip(manifest["layers"], config["rootfs"]["diff_ids"], strict=True):
            data = gzip.decompress(blobs[part["digest"].removeprefix("sha256:")])
            assert f"sha256:{hashlib.sha256(data).hexdigest()}" == diff


def test_a_layer_of_one_image_changes_no_other(tmp_path: Path) -> None:
    tree(tmp_path / "layers/1", 0o644, 1)
    entries = []
    for name in ("without", "with"):
        if name == "with":
            tree(tmp_path / "own/access-broker/4-access", 0o644, 1)
        place = layout(tmp_path / name, tmp_path / "layers", "amd64")
        entries.append(
            {
                entry["annotations"]["org.opencontainers.image.ref.name"]: entry
                for entry in json.loads((place / "index.json").read_text())["manifests"]
            }
        )
    without, made = entries
    changed = {name for name, entry in made.items() if entry != without[name]}
    assert changed == {"access-broker"}
    manifest = json.loads(
        (tmp_path / "with/blobs" / made["access-broker"]["digest"].replace(":", "/")).read_text()
    )
    assert len(manifest["layers"]) == 2


def test_several_architectures_become_one_index_in_any_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree(tmp_path / "layers/1", 0o644, 1)
    parts = [layout(tmp_path / arch, tmp_path / "layers", arch) for arch in ("amd64", "arm64")]
    printed = []
    for number, order in enumerate((parts, parts[::-1])):
        merge(argparse.Namespace(layout=tmp_path / f"merged-{number}", parts=order))
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    place = tmp_path / "merged-0"
    for entry in json.loads((place / "index.json").read_text())["manifests"]:
        name = entry["digest"].removeprefix("sha256:")
        image = json.loads((place / "blobs/sha256" / name).read_text())
        assert [one["platform"]["architecture"] for one in image["manifests"]] == ["amd64", "arm64"]


def test_the_libraries_of_this_python_are_read_from_its_file() -> None:
    elf = Elf(Path(sys.executable).resolve().read_bytes())
    assert "libc.so.6" in elf.needed
    assert elf.loader.startswith("/lib")


def test_links_are_read_as_the_bases_own_root_would(tmp_path: Path) -> None:
    (tmp_path / "usr/lib/x-linux-gnu").mkdir(parents=True)
    (tmp_path / "lib").symlink_to("/usr/lib")
    real = tmp_path / "usr/lib/x-linux-gnu/libc.so.6"
    real.write_text("libc")
    (tmp_path / "usr/lib/loop").symlink_to("loop")
    (tmp_path / "usr/lib/up").symlink_to("../lib/x-linux-gnu")
    base = Base(tmp_path)
    assert base.library("libc.so.6") == real
    assert base.resolve("/usr/lib/up/libc.so.6") == real
    assert base.resolve("/lib/loop/x") is None
    with pytest.raises(SystemExit, match=r"libnone\.so: expected in the base image"):
        base.library("libnone.so")
