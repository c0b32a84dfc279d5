"""The chart's own ClickHouse: its image's entrypoint, its user `default`, and its ports."""

import http.client
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from lab.real.chart import render
from lab.real.chart.clickhouse_image import RELATED, USERS_D, find_writes
from lab.real.chart.pods import environment
from lab.real.parts.clickhouse import old_clickhouse

DEFAULT = render.CHART / "ci" / "default-values.yaml"
SECRET = ("--set", "clickhouse.defaultPasswordSecret.name=own")
USED_PORTS = {"http", "native", "ch-metrics"}


def rendered(*flags: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return ClickHouse's container and the files of its ConfigMap."""
    documents = render.manifests(DEFAULT, *flags)
    (spec,) = [d["spec"]["template"]["spec"] for d in documents if d["kind"] == "StatefulSet"]
    (files,) = [d["data"] for d in documents if "users.xml" in d.get("data", {})]
    return spec["containers"][0], files


def read_only(container: dict[str, Any], path: PurePosixPath) -> bool:
    """Return whether a path is on the read-only root or on a mount that is read-only."""
    mounts = [m for m in container["volumeMounts"] if path.is_relative_to(m["mountPath"])]
    if not mounts:
        return bool(container["securityContext"]["readOnlyRootFilesystem"])
    return bool(max(mounts, key=lambda one: len(one["mountPath"])).get("readOnly", False))


def users_of(files: dict[str, str]) -> dict[str, str]:
    return {"byoc.xml": files["users.xml"]}


@pytest.mark.parametrize("flags", [(), SECRET])
def test_the_entrypoint_writes_only_where_it_can(flags: tuple[str, ...]) -> None:
    container, files = rendered(*flags)
    writes = find_writes(environment(container), users_of(files))
    assert [path for path in writes if read_only(container, path)] == []


def test_without_the_variable_an_image_would_end_at_its_start() -> None:
    """The check above can fail: as the chart of 0.1.0 was."""
    container, _ = rendered()
    writes = find_writes({}, {})
    assert [path for path in writes if read_only(container, path)] == [USERS_D / "default-user.xml"]


def test_the_images_file_does_not_decide_where_it_listens() -> None:
    """It is merged after a file that begins with `b`, so the chart's takes its place."""
    container, files = rendered()
    mounts = {m["mountPath"]: m.get("subPath") for m in container["volumeMounts"]}
    assert mounts[str(RELATED)] == "server.xml"
    server = ET.fromstring(files["server.xml"])
    assert [one.text for one in server.findall("listen_host")] == ["::", "0.0.0.0"]
    assert server.findtext("listen_try") == "1", "a node may lack one of the families"
    removed = {one.tag for one in server if one.get("remove")}
    assert removed == {"mysql_port", "postgresql_port", "interserver_http_port"}
    assert {port["name"] for port in container["ports"]} == USED_PORTS


def test_the_password_of_default_comes_from_its_secret() -> None:
    container, files = rendered(*SECRET)
    user = ET.fromstring(files["users.xml"]).find("users/default")
    assert user is not None
    password = user.find("password")
    assert password is not None
    variable = password.get("from_env")
    assert environment(container)[str(variable)] == "password of own"
    assert [ip.text for ip in user.findall("networks/ip")] == ["::/0"]


@pytest.mark.parametrize(
    ("source", "overridden", "accepted"),
    [("127.0.0.1", True, True), ("127.0.0.2", True, False), ("127.0.0.2", False, True)],
    ids=["own-pod", "another-pod", "another-pod-without-the-charts-file"],
)
def test_a_real_server_refuses_default_from_elsewhere(
    source: str, overridden: bool, accepted: bool, tmp_path: Path
) -> None:
    server = old_clickhouse(tmp_path)
    base = tmp_path / "users.xml"
    base.write_text(base.read_text().replace("127.0.0.1", "::/0"))  # as the image's own users.xml
    if overridden:
        user = ET.fromstring(rendered()[1]["users.xml"]).find("users/default")
        assert user is not None
        only = ET.Element("yandex")  # 18.16 has another root, and not all settings of the exporter
        ET.SubElement(only, "users").append(user)
        (tmp_path / "users.d").mkdir()
        (tmp_path / "users.d" / "byoc.xml").write_bytes(ET.tostring(only))
    with server:
        connection = http.client.HTTPConnection(
            "127.0.0.1", server.port, timeout=10, source_address=(source, 0)
        )
        connection.request("GET", "/?query=SELECT%201&user=default")
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
    assert (response.status == 200) == (text == "1\n") == accepted
