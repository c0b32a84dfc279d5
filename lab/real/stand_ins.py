"""Programs that the documentation's commands call and that need a cluster, an account or a server.

`install(DIRECTORY)` writes one launcher per program, for PATH. Each stand-in takes the arguments of
the real program and fails if the real one would refuse them:

| program | checks | instead of the real effect |
|---|---|---|
| helm | the real `helm template` accepts the arguments | prints the manifests |
| kubectl | names and ports are of the rendered chart; files exist | `exec` runs here |
| aws | service, operation and options are of botocore's model | keeps a resource's policy |
| clickhouse-client | standard input has statements for users, grants or profiles | nothing |
| curl | the port is one of the chart's containers | prints an empty JSON object |
| make | the target exists (`make --dry-run`) | prints the commands |
| docker run | the real client and engine accept the arguments | adds `--detach` |
| docker compose | the real Compose accepts the file, with its `.env` | prints the services |
| byoc-control-plane | the real program; one that serves becomes healthy | ends it with SIGTERM |

A stand-in appends its arguments to CALLS, one JSON list per line.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import botocore.session
import yaml
from botocore import xform_name
from botocore.model import Shape
from botocore.validate import validate_parameters

from lab.real.parts import helm as helm_part
from lab.real.parts.install import ROOT
from lab.real.parts.process import POLL_SECONDS, responds

CALLS = "STAND_IN_CALLS"  # file of the calls; manifests and responses of EKS are next to it
INSTALLED = "STAND_IN_INSTALLED"  # PYTHONPATH of the control plane that a page has installed
DOCKER = "STAND_IN_DOCKER"  # the real client
COMPOSE = "STAND_IN_COMPOSE"  # the real Docker Compose
MAKE = "/usr/bin/make"
READY_SECONDS = 60.0  # a busy machine; the wait ends as soon as it may
SECRETS = frozenset({"byoc-alerts", "byoc-clickhouse"})  # of the page's owners


def install(directory: Path, *programs: str) -> None:
    """Write a launcher for each program into a directory."""
    for program in programs or PROGRAMS:
        path = directory / program
        command = shlex.join([sys.executable, "-m", "lab.real.stand_ins", program])
        path.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {command} "$@"\n')
        path.chmod(0o755)


def _need(condition: object, message: str) -> None:
    if not condition:
        raise SystemExit(message)


def _manifests() -> list[dict[str, Any]]:
    rendered = Path(os.environ[CALLS]).with_suffix(".yaml")
    _need(rendered.exists(), "no chart is installed: expected `helm install` first")
    return [one for one in yaml.safe_load_all(rendered.read_text()) if one]


def _find_all(node: Any, key: str) -> list[Any]:
    """Return every value of a key, at any depth."""
    if isinstance(node, list):
        return [value for inner in node for value in _find_all(inner, key)]
    if not isinstance(node, dict):
        return []
    own = [node[key]] if key in node else []
    return own + [value for inner in node.values() for value in _find_all(inner, key)]


def _containers() -> dict[str, dict[str, Any]]:
    kinds = ("containers", "initContainers")
    lists = [value for kind in kinds for value in _find_all(_manifests(), kind)]
    return {one["name"]: one for all_of in lists for one in all_of}


def _ports() -> set[int]:
    return {
        port["containerPort"] for one in _containers().values() for port in one.get("ports", [])
    }


def helm(arguments: list[str]) -> None:
    """Render with both versions of Helm instead of talking to a cluster."""
    command, *rest = arguments
    _need(command in {"install", "upgrade", "template", "test"}, f"helm {command}: no stand-in")
    if command == "test":
        _need(_find_all(_manifests(), "helm.sh/hook"), "helm test: the chart has no test")
        return
    for version in helm_part.VERSIONS:
        argv = [str(helm_part.helm(version)), "template", *rest]
        text = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    Path(os.environ[CALLS]).with_suffix(".yaml").write_text(text)
    sys.stdout.write(text)


def kubectl(arguments: list[str]) -> None:
    """Check the arguments against the rendered chart."""
    parser = argparse.ArgumentParser(prog="kubectl", allow_abbrev=False)
    parser.add_argument("-n", dest="namespace", required=True)
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create")
    create.add_argument("kind", choices=["secret"])
    create.add_argument("type", choices=["generic"])
    create.add_argument("name")
    create.add_argument("--from-file", action="append", type=Path, default=[])
    create.add_argument("--from-literal", action="append", default=[])
    get = commands.add_parser("get")
    get.add_argument("kind", choices=["pods", "networkpolicy"])
    get.add_argument("name", nargs="?")
    get.add_argument("-l", dest="label", default="")
    get.add_argument("-o", dest="output", choices=["name", "yaml"])
    forward = commands.add_parser("port-forward")
    forward.add_argument("pod")
    forward.add_argument("ports", nargs="+", type=int)
    inside, _, program = shlex.join(arguments).partition(" -- ")
    execute = commands.add_parser("exec")
    execute.add_argument("pod")
    execute.add_argument("-c", dest="container", required=True)
    given = parser.parse_args(shlex.split(inside))
    _need(given.namespace == "clickhouse", "kubectl: expected the namespace clickhouse")
    match given.command:
        case "create":
            _need(given.name in SECRETS, f"kubectl: {given.name} is not a secret of the values")
            _need(bool(given.from_file or given.from_literal), "kubectl: an empty secret")
            missing = [str(path) for path in given.from_file if not path.is_file()]
            _need(not missing, f"kubectl: {missing}: no such file")
            empty = [one for one in given.from_literal if not one.partition("=")[2]]
            _need(not empty, f"kubectl: {empty}: expected key=value")
        case "get" if given.kind == "networkpolicy":
            policies = [one for one in _manifests() if one["kind"] == "NetworkPolicy"]
            found = [one for one in policies if one["metadata"]["name"] == given.name]
            _need(len(found) == 1, f"kubectl: no networkpolicy {given.name}")
            found[0]["metadata"]["namespace"] = given.namespace  # as the API server states it
            print(yaml.safe_dump(found[0]))
        case "get":
            name, _, value = given.label.partition("=")
            _need(value in _find_all(_manifests(), name), f"kubectl: no pod has {given.label}")
            print("pod/chi-clickhouse-0-0-0")
        case "port-forward":
            _need(given.pod.startswith("pod/"), f"kubectl: {given.pod!r} is not a pod")
            _need(set(given.ports) <= _ports(), f"kubectl: no container has {given.ports}")
        case "exec":
            _need(given.container in _containers(), f"kubectl: no container {given.container}")
            subprocess.run(shlex.split(program), check=True)


def aws(arguments: list[str]) -> None:
    """Check one request, built from options as the AWS CLI builds it: `file://` reads a file.

    It is not sent to moto, which ignores a bucket policy's conditions and lacks operations of IAM.
    The responses of EKS are files next to CALLS.
    """
    service, operation, *options = arguments
    session = botocore.session.get_session()
    client = session.create_client(service.replace("s3api", "s3"), region_name="eu-central-1")
    names = {xform_name(name, "-"): name for name in client.meta.method_to_api_mapping.values()}
    _need(operation in names, f"aws {service}: no operation {operation}")
    model = client.meta.service_model.operation_model(names[operation])
    members = model.input_shape.members
    known = {f"--{xform_name(name, '-')}": name for name in members}
    # The CLI joins these words, botocore's own rule does not.
    known |= {
        "--client-id": "ClientID",
        "--open-id-connect-provider-arn": "OpenIDConnectProviderArn",
    }
    given = {}
    for option, value in zip(options[::2], options[1::2], strict=True):
        _need(known.get(option) in members, f"aws {service} {operation}: no option {option}")
        path = value.removeprefix("file://")
        text = value if path == value else Path(path).read_text()
        given[known[option]] = _parse_parameter(members[known[option]], text)
    validate_parameters(given, model.input_shape)
    kept = Path(os.environ[CALLS]).with_suffix(f".{service}-policy")
    match operation:
        case "put-bucket-policy":
            kept.write_text(given["Policy"])
        case "get-bucket-policy":
            print(json.dumps({"Policy": kept.read_text()}))
        case "set-queue-attributes":
            kept.write_text(given["Attributes"]["Policy"])
        case "get-queue-attributes":
            print(json.dumps({"Attributes": {"Policy": kept.read_text()}}))
        case _ if service == "eks":
            print(Path(os.environ[CALLS]).with_name(f"{operation}.json").read_text())


def _parse_parameter(shape: Shape, text: str) -> Any:
    """Return the value of an option: a list of words, JSON, or the text itself."""
    match shape.type_name:
        case "list":
            return text.split()  # only lists of one word are in use
        case "map" | "structure":
            return json.loads(text)
        case _:
            return text


def clickhouse_client(arguments: list[str]) -> None:
    """Accept statements on standard input."""
    unknown = set(arguments) - {"--multiquery"}
    _need(not unknown, f"clickhouse-client: unexpected {sorted(unknown)}")
    statements = sys.stdin.read()
    _need("CHANGE_ME" not in statements, "clickhouse-client: the password is still the example's")
    statements = statements.upper()
    _need("CREATE USER" in statements and "GRANT " in statements, "clickhouse-client: no user")


def curl(arguments: list[str]) -> None:
    """Answer for a port that a container of the chart listens on."""
    option, address = arguments
    host, _, rest = address.partition(":")
    port, _, path = rest.partition("/")
    _need((option, host, path) == ("-s", "localhost", "status"), f"curl: {arguments}")
    _need(int(port) in _ports(), f"curl: no container listens on {port}")
    print("{}")


def make(arguments: list[str]) -> None:
    """Print what the real make would run."""
    subprocess.run([MAKE, "--dry-run", *arguments], check=True)


def docker(arguments: list[str]) -> None:
    """Run the container in the background with the real client; print its id.

    `docker compose up` pulls images, so the file is only read.
    """
    command, *rest = arguments
    if command == "compose":
        *options, last, _ = rest
        _need((last, rest[-1]) == ("up", "--build"), f"docker compose {rest}: no stand-in")
        subprocess.run([os.environ[COMPOSE], *options, "config", "--services"], check=True)
        return
    _need(command == "run", f"docker {command}: no stand-in")
    subprocess.run([os.environ[DOCKER], "run", "--detach", *rest], check=True)


def byoc_control_plane(arguments: list[str]) -> None:
    """Run the real program; end one that serves with SIGTERM as soon as it is healthy."""
    command = [sys.executable, "-m", "byoc_control_plane", *arguments]
    environ = {**os.environ, "PYTHONPATH": os.environ[INSTALLED]}
    with subprocess.Popen(command, env=environ) as program:
        if arguments[0] == "run" or "--watch" in arguments:
            page = f"http://{environ['BYOC_PLANE_LISTEN']}/healthz"
            deadline = time.monotonic() + READY_SECONDS
            while program.poll() is None and not responds(page):
                _need(time.monotonic() < deadline, f"{page}: not healthy")
                time.sleep(POLL_SECONDS)
            program.terminate()
    _need(program.returncode == 0, f"byoc-control-plane {arguments}: {program.returncode}")


PROGRAMS = {
    "helm": helm,
    "kubectl": kubectl,
    "aws": aws,
    "clickhouse-client": clickhouse_client,
    "curl": curl,
    "make": make,
    "docker": docker,
    "byoc-control-plane": byoc_control_plane,
}


def main() -> int:
    """Run one stand-in; return 0. Raises SystemExit with what is wrong."""
    program, *arguments = sys.argv[1:]
    with Path(os.environ[CALLS]).open("a") as calls:
        calls.write(json.dumps([program, *arguments]) + "\n")
    PROGRAMS[program](arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
