"""`policy eks-endpoint --check`: each finding, each note, and input that is not AWS's."""

import json
from pathlib import Path
from typing import Any

import pytest

from byoc_agents.app.cli import main

CUSTOMER, VENDOR = "210987654321", "111122223333"
ROLE = f"arn:aws:iam::{VENDOR}:role/support"
POLICY = "arn:aws:eks::aws:cluster-access-policy/AmazonEKSClusterAdminPolicy"
OPTIONS = ["--vendor-account", VENDOR, "--vendor-cidr", "198.51.100.0/24"]


def cluster(**changes: Any) -> dict[str, Any]:
    """Return the output of `aws eks describe-cluster` of a cluster without a finding."""
    vpc = {
        "subnetIds": ["subnet-0a", "subnet-0b"],
        "endpointPublicAccess": False,
        "endpointPrivateAccess": True,
        "publicAccessCidrs": [],
    }
    logs = [
        {"types": ["api", "audit", "authenticator"], "enabled": True},
        {"types": ["controllerManager", "scheduler"], "enabled": False},
    ]
    usual = {
        "name": "data-plane",
        "arn": f"arn:aws:eks:eu-west-1:{CUSTOMER}:cluster/data-plane",
        "version": "1.34",
        "resourcesVpcConfig": vpc | changes.pop("vpc", {}),
        "logging": {"clusterLogging": logs},
        "accessConfig": {"authenticationMode": "API"},
    }
    return {"cluster": usual | changes}


def entry(**changes: Any) -> dict[str, Any]:
    usual = {
        "clusterName": "data-plane",
        "principalArn": ROLE,
        "kubernetesGroups": ["byoc-support-view"],
        "username": f"arn:aws:sts::{VENDOR}:assumed-role/support/{{{{SessionName}}}}",
        "type": "STANDARD",
    }
    return {"accessEntry": usual | changes}


def policies(*arns: str, principal: str = ROLE) -> dict[str, Any]:
    associated = [{"policyArn": arn, "accessScope": {"type": "cluster"}} for arn in arns]
    return {
        "clusterName": "data-plane",
        "principalArn": principal,
        "associatedAccessPolicies": associated,
    }


def check(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    described: object,
    entries: list[object] | None = None,
    *more: str,
) -> tuple[int, list[str], list[str]]:
    """Return the exit code, the findings and the notes."""
    file, listed = place / "cluster.json", place / "entries.json"
    file.write_text(json.dumps(described))
    argv = ["policy", "eks-endpoint", "--check", str(file), *OPTIONS, *more]
    if entries is not None:
        listed.write_text("\n".join(json.dumps(one, indent=2) for one in entries))
        argv += ["--access-entries", str(listed)]
    code = main(argv)
    response = capsys.readouterr()
    return code, response.out.splitlines(), response.err.splitlines()


def test_a_private_cluster_with_the_support_group_has_no_finding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"arn:aws:iam::{CUSTOMER}:role/admin"
    entries: list[object] = [
        entry(),
        policies(),
        entry(principalArn=own, kubernetesGroups=["x"]),
        policies(POLICY, principal=own),
    ]
    assert check(tmp_path, capsys, cluster(), entries) == (0, [], [])


CLUSTERS: dict[str, tuple[dict[str, Any], str]] = {
    "public to every address": (
        {"vpc": {"endpointPublicAccess": True, "publicAccessCidrs": ["0.0.0.0/0"]}},
        (
            "cluster.resourcesVpcConfig.publicAccessCidrs[0]: 0.0.0.0/0 is not the vendor's:"
            " expected 198.51.100.0/24"
        ),
    ),
    "public with an empty list": (
        {"vpc": {"endpointPublicAccess": True}},
        (
            "cluster.resourcesVpcConfig.publicAccessCidrs: empty: every address:"
            " expected 198.51.100.0/24"
        ),
    ),
    "public to one address more": (
        {
            "vpc": {
                "endpointPublicAccess": True,
                "publicAccessCidrs": ["198.51.100.7/32", "203.0.113.1/32"],
            }
        },
        (
            "cluster.resourcesVpcConfig.publicAccessCidrs[1]: 203.0.113.1/32 is not the vendor's:"
            " expected 198.51.100.0/24"
        ),
    ),
    "public to a wider network": (
        {"vpc": {"endpointPublicAccess": True, "publicAccessCidrs": ["198.51.0.0/16"]}},
        (
            "cluster.resourcesVpcConfig.publicAccessCidrs[0]: 198.51.0.0/16 is not the vendor's:"
            " expected 198.51.100.0/24"
        ),
    ),
    "public to IPv6": (
        {"vpc": {"endpointPublicAccess": True, "publicAccessCidrs": ["::/0"]}},
        (
            "cluster.resourcesVpcConfig.publicAccessCidrs[0]: ::/0 is not the vendor's:"
            " expected 198.51.100.0/24"
        ),
    ),
    "no private endpoint": (
        {"vpc": {"endpointPrivateAccess": False}},
        "cluster.resourcesVpcConfig.endpointPrivateAccess: false: expected true",
    ),
    "no audit log": (
        {"logging": {"clusterLogging": [{"types": ["authenticator"], "enabled": True}]}},
        "cluster.logging.clusterLogging: audit is off: expected audit enabled",
    ),
    "aws-auth only": (
        {"accessConfig": {"authenticationMode": "CONFIG_MAP"}},
        (
            "cluster.accessConfig.authenticationMode: CONFIG_MAP:"
            " expected API, which has access entries"
        ),
    ),
}


@pytest.mark.parametrize(("changes", "line"), CLUSTERS.values(), ids=CLUSTERS)
def test_a_finding_about_the_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], line: str
) -> None:
    assert check(tmp_path, capsys, cluster(**changes), [entry(), policies()]) == (1, [line], [])


def test_a_cluster_without_logs_and_access_entries_has_a_finding_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = cluster()
    del described["cluster"]["logging"], described["cluster"]["accessConfig"]
    code, findings, _ = check(tmp_path, capsys, described)
    assert (code, len(findings)) == (1, 3)


def test_a_public_endpoint_for_the_vendor_alone_is_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vpc = {"endpointPublicAccess": True, "publicAccessCidrs": ["198.51.100.8/29"]}
    code, findings, notes = check(tmp_path, capsys, cluster(vpc=vpc), [entry(), policies()])
    assert (code, findings) == (0, [])
    assert notes == [
        "note: the public endpoint is open to the vendor's networks, as a break-glass path"
    ]


def test_what_is_not_judged_is_a_note(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = cluster(accessConfig={"authenticationMode": "API_AND_CONFIG_MAP"})
    assert check(tmp_path, capsys, both) == (
        0,
        [],
        [
            "note: the ConfigMap aws-auth gives access too, and is not judged",
            "note: no --access-entries: who may log in is not judged",
        ],
    )


ENTRIES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "an access policy of EKS": (
        policies(POLICY),
        ["has AmazonEKSClusterAdminPolicy: expected no access policy of EKS"],
    ),
    "another group": (
        entry(kubernetesGroups=["byoc-support-view", "system:masters"]),
        ["kubernetesGroups has byoc-support-view, system:masters: expected byoc-support-view"],
    ),
    "no group": (
        entry(kubernetesGroups=[]),
        ["kubernetesGroups has no group: expected byoc-support-view"],
    ),
    "the user name of the cluster's creator": (
        entry(username="kubernetes-admin"),
        [
            (
                "username kubernetes-admin:"
                f" expected arn:aws:sts::{VENDOR}:assumed-role/support/{{{{SessionName}}}}"
            )
        ],
    ),
    "the user name of another role's sessions": (
        entry(username=f"arn:aws:sts::{VENDOR}:assumed-role/admin/{{{{SessionName}}}}"),
        [
            (
                f"username arn:aws:sts::{VENDOR}:assumed-role/admin/{{{{SessionName}}}}:"
                f" expected arn:aws:sts::{VENDOR}:assumed-role/support/{{{{SessionName}}}}"
            )
        ],
    ),
    "another type": (entry(type="EC2_LINUX"), ["type EC2_LINUX: expected STANDARD"]),
}


@pytest.mark.parametrize(("given", "lines"), ENTRIES.values(), ids=ENTRIES)
def test_a_finding_about_the_vendors_entry(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    given: dict[str, Any],
    lines: list[str],
) -> None:
    wanted = [f"accessEntry {ROLE}: {line}" for line in lines]
    other = policies() if "accessEntry" in given else entry()
    assert check(tmp_path, capsys, cluster(), [given, other]) == (1, wanted, [])


def test_a_user_and_an_unknown_account_are_findings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    user, other = f"arn:aws:iam::{VENDOR}:user/x", "arn:aws:iam::999999999999:role/x"
    given: list[object] = [
        *(entry(principalArn=user), policies(principal=user)),
        *(entry(principalArn=other, username=""), policies(principal=other)),
    ]
    assert check(tmp_path, capsys, cluster(), given)[1] == [
        f"accessEntry {user}: is not a role: expected an IAM role",
        (
            f"accessEntry {other}: of account 999999999999:"
            f" expected {CUSTOMER}, the customer's, or {VENDOR}, the vendor's"
        ),
    ]


def test_an_entry_needs_both_outputs_of_this_cluster(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = f"accessEntry {ROLE}"
    needs_policies = f"{where}: no output of list-associated-access-policies for data-plane"
    needs_entry = f"{where}: no output of describe-access-entry for data-plane"
    other = f"{where}: of cluster other: expected data-plane"
    entry_of_other = entry(clusterName="other")
    policies_of_other = policies() | {"clusterName": "other"}
    for given, wanted in (
        ([entry()], [f"{needs_policies}: expected both"]),
        ([policies()], [f"{needs_entry}: expected both"]),
        ([entry_of_other, policies()], [other, f"{needs_entry}: expected both"]),
        ([entry(), policies_of_other], [other, f"{needs_policies}: expected both"]),
    ):
        assert check(tmp_path, capsys, cluster(), given) == (1, wanted, [])  # type: ignore[arg-type]


def test_entries_without_the_vendors_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = entry(principalArn=f"arn:aws:iam::{CUSTOMER}:role/admin")
    code, findings, notes = check(tmp_path, capsys, cluster(), [own])
    assert (code, findings) == (0, [])
    assert notes == ["note: no entry of the vendor's account is in --access-entries"]


@pytest.mark.parametrize("where", ["cluster", "entries"])
def test_a_key_that_appears_twice_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    described, listed = tmp_path / "described.json", tmp_path / "list.json"
    text, entries = json.dumps(cluster()), json.dumps(entry())
    if where == "cluster":
        text = text.replace('"endpointPublic', '"endpointPublicAccess": true, "endpointPublic', 1)
    else:
        entries = entries.replace(
            '"kubernetesGroups"', '"kubernetesGroups": ["system:masters"], "kubernetesGroups"'
        )
    described.write_text(text)
    listed.write_text(entries + json.dumps(policies()))
    argv = ["policy", "eks-endpoint", "--check", str(described), *OPTIONS]
    assert main([*argv, "--access-entries", str(listed)]) == 2
    assert "appears twice" in capsys.readouterr().err


def test_the_vendors_account_is_not_the_customers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = tmp_path / "described.json"
    described.write_text(json.dumps(cluster()))
    argv = ["policy", "eks-endpoint", "--check", str(described), "--vendor-account", CUSTOMER]
    assert main(argv) == 2
    assert f"--vendor-account: {CUSTOMER} is the cluster's own account" in capsys.readouterr().err


@pytest.mark.parametrize(
    "networks",
    [
        ["0.0.0.0/0"],
        ["::/0"],
        ["0.0.0.0/1", "128.0.0.0/1"],
        ["11.0.0.0/8", "12.0.0.0/8"],
        ["2000::/3"],
        ["::ffff:0:0/96"],
        ["2002::/20"],
        ["64:ff9b::/97", "64:ff9b::8000:0/97"],
    ],
)
def test_wide_networks_of_the_vendor_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], networks: list[str]
) -> None:
    described = tmp_path / "described.json"
    described.write_text(json.dumps(cluster()))
    argv = ["policy", "eks-endpoint", "--check", str(described), "--vendor-account", VENDOR]
    for network in networks:
        argv += ["--vendor-cidr", network]
    assert main(argv) == 2
    assert f"--vendor-cidr: {networks[0]}" in capsys.readouterr().err


def test_the_findings_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    described = cluster(vpc={"endpointPrivateAccess": False})
    code, lines, notes = check(tmp_path, capsys, described, None, "--json")
    report = json.loads("\n".join(lines))
    assert (code, notes, report["ok"], report["policy"]) == (1, [], False, "eks-endpoint")
    assert report["findings"] == [
        {
            "where": "cluster.resourcesVpcConfig.endpointPrivateAccess",
            "problem": "false",
            "expected": "true",
        }
    ]
    assert report["notes"] == ["no --access-entries: who may log in is not judged"]


DEEP = "[" * 100_000  # deeper than the parsers go


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"cluster": {}}', '{"cluster": {"arn": 1}}', "not JSON", "\x80", DEEP]
)
def test_another_file_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(text, encoding="latin-1")
    assert main(["policy", "eks-endpoint", "--check", str(file), *OPTIONS]) == 2
    assert f"--check {file}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "given", ["", "[]", "{}", '{"accessEntry": 1}', "not JSON", '{"principalArn": "a"}', DEEP]
)
def test_other_entries_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(given)
    described = tmp_path / "described.json"
    described.write_text(json.dumps(cluster()))
    argv = ["policy", "eks-endpoint", "--check", str(described), *OPTIONS]
    assert main([*argv, "--access-entries", str(listed)]) == 2
    assert "expected the outputs of aws eks describe-access-entry" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"), [("--vendor-account", "12"), ("--vendor-cidr", "198.51.100.7/24")]
)
def test_a_mistake_in_an_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str
) -> None:
    described = tmp_path / "described.json"
    described.write_text(json.dumps(cluster()))
    argv = ["policy", "eks-endpoint", "--check", str(described), *OPTIONS, option, value]
    assert main(argv) == 2
    assert f"{option}: invalid value {value!r}: expected" in capsys.readouterr().err
