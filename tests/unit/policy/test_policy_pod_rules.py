"""`policy egress-rules --uid`: rules of a pod that hold its containers apart by their uid."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from byoc_agents.app.cli import main
from byoc_agents.errors import ConfigError
from byoc_agents.policy.inputs import Options
from byoc_agents.policy.kubernetes import network_policy
from byoc_agents.policy.pod_rules import check_pod_rules, pod_rules
from tests.unit.policy.policies import FACTS, PLANE, POD_IDENTITY, PROXY, S3, SQS
from tests.unit.policy.test_policy_cli import SETTINGS

CIDRS = {
    "s3": ("52.218.0.0/17", "3.5.64.0/21"),
    "sqs": ("10.0.1.5/32", "2001:db8:1::/64"),
    "control-plane": ("203.0.113.0/24",),
}
GIVEN = Options(cidrs=CIDRS, dns=("10.96.0.10/32", "fd00::a/128"), uids=(65532,))
PRINTED = f"""\
table inet byoc_agents_pod
delete table inet byoc_agents_pod
table inet byoc_agents_pod {{
  chain output {{
    type filter hook output priority filter; policy accept;
    oifname "lo" accept
    meta skuid 65532 goto daemons
    tcp flags & (fin | syn | rst | ack) == syn goto others
  }}
  chain daemons {{
    tcp flags & (fin | syn | rst | ack) != syn accept
    ip daddr 10.96.0.10/32 udp dport 53 counter accept comment "dns"
    ip daddr 10.96.0.10/32 tcp dport 53 counter accept comment "dns"
    ip6 daddr fd00::a/128 udp dport 53 counter accept comment "dns"
    ip6 daddr fd00::a/128 tcp dport 53 counter accept comment "dns"
    ip daddr 52.218.0.0/17 tcp dport 443 counter accept comment "s3: {S3}"
    ip daddr 3.5.64.0/21 tcp dport 443 counter accept comment "s3: {S3}"
    ip daddr {POD_IDENTITY}/32 tcp dport 80 counter accept comment "pod-identity: {POD_IDENTITY}"
    ip daddr 10.0.1.5/32 tcp dport 443 counter accept comment "sqs: {SQS}"
    ip6 daddr 2001:db8:1::/64 tcp dport 443 counter accept comment "sqs: {SQS}"
    ip daddr 203.0.113.0/24 tcp dport 443 counter accept comment "control-plane: {PLANE}"
    meta l4proto tcp counter reject with tcp reset comment "everything else"
    counter reject comment "everything else"
  }}
  chain others {{
    ip daddr 10.0.1.9/32 counter accept comment "also"
    ip daddr 52.218.0.0/17 tcp dport 443 counter accept comment "s3: {S3}"
    ip daddr 3.5.64.0/21 tcp dport 443 counter accept comment "s3: {S3}"
    ip daddr {POD_IDENTITY}/32 tcp dport 80 counter reject with tcp reset \
comment "pod-identity: {POD_IDENTITY}"
    ip daddr 10.0.1.5/32 tcp dport 443 counter reject with tcp reset comment "sqs: {SQS}"
    ip6 daddr 2001:db8:1::/64 tcp dport 443 counter reject with tcp reset comment "sqs: {SQS}"
    ip daddr 203.0.113.0/24 tcp dport 443 counter reject with tcp reset \
comment "control-plane: {PLANE}"
  }}
}}
"""
SHARED = replace(GIVEN, also=("s3", "10.0.1.9/32"))
RULES = [line for line in PRINTED.splitlines() if line.startswith("    ")]
# What `nft list ruleset` of nft 1.0.6 prints of it; tests/real has that program itself.
LISTED = re.sub(
    r"counter",
    "counter packets 7 bytes 420",
    PRINTED.partition("delete")[2]
    .partition("\n")[2]
    .replace("  ", "\t")
    .replace("/32 ", " ")
    .replace("/128 ", " ")
    .replace("tcp flags & (fin | syn | rst | ack) == syn", "tcp flags syn / fin,syn,rst,ack")
    .replace("tcp flags & (fin | syn | rst | ack) != syn", "tcp flags != syn / fin,syn,rst,ack"),
)


def others(text: str) -> list[str]:
    return text.partition("chain others {\n")[2].partition("  }")[0].splitlines()


def test_the_table_is_this() -> None:
    assert pod_rules(FACTS, SHARED).text == PRINTED


def test_what_the_networkpolicy_opens_for_the_pod_is_refused_to_every_other_uid() -> None:
    """Except DNS."""
    options = replace(GIVEN, dns=("10.96.0.10/32",))
    opened = {
        (peer["ipBlock"]["cidr"], rule["ports"][0]["port"])
        for rule in network_policy(FACTS, options).document["spec"]["egress"]
        for peer in rule["to"]
        if "ipBlock" in peer and rule["ports"][0]["port"] != 53
    }
    rows = pod_rules(FACTS, options).document
    refused = {(one["peer"], one["port"]) for one in rows if one["action"] == "reject"}
    assert refused == opened
    assert len(refused) == 6
    assert {one["chain"] for one in rows if one["action"] == "reject"} == {"others"}


@pytest.mark.parametrize(
    ("name", "open_to_others"),
    [
        ("s3", ["52.218.0.0/17", "3.5.64.0/21"]),
        (SQS, ["10.0.1.5/32", "2001:db8:1::/64"]),
        ("pod-identity", [f"{POD_IDENTITY}/32"]),
        ("10.0.0.0/8", ["10.0.0.0/8"]),
    ],
)
def test_what_others_need_too_is_named_by_kind_host_or_address(
    name: str, open_to_others: list[str]
) -> None:
    rows = pod_rules(FACTS, replace(GIVEN, also=(name,))).document
    others = [one for one in rows if one["chain"] == "others"]
    assert [one["peer"] for one in others if one["action"] == "accept"] == open_to_others
    assert [one["action"] for one in others] == sorted(one["action"] for one in others)


def test_several_uids_are_held_alike() -> None:
    text = pod_rules(FACTS, replace(GIVEN, uids=(65532, 65533))).text
    assert re.findall(r"meta skuid (\d+) goto daemons", text) == ["65532", "65533"]


def test_with_a_proxy_the_others_may_not_use_it() -> None:
    facts = replace(FACTS, proxy=PROXY)
    text = pod_rules(facts, replace(GIVEN, cidrs={"proxy": ("10.0.6.7/32",)})).text
    assert [line for line in others(text) if "reject" in line and "10.0.6.7/32" in line]
    assert S3 not in text


def test_names_and_missing_addresses_are_all_reported() -> None:
    with pytest.raises(ConfigError) as raised:
        pod_rules(FACTS, Options(uids=(65532,), also=("gcs",)))
    said = str(raised.value)
    assert f"--cidr: no address of {S3}: expected s3=CIDR: a rule cannot contain a name" in said
    assert f"--cidr: no address of {PLANE}: expected control-plane=CIDR" in said
    assert "--dns: expected the resolvers' addresses, as in the pod's /etc/resolv.conf" in said
    assert "--also: invalid value 'gcs': expected a CIDR, or one of " in said
    assert "pod-identity, s3, sqs" in said


def test_without_names_there_is_no_dns() -> None:
    facts = replace(FACTS, destinations=FACTS.destinations[2:3])
    text = pod_rules(facts, Options(uids=(1,))).text
    assert "dport 53" not in text
    assert f"ip daddr {POD_IDENTITY}/32 tcp dport 80" in text


@pytest.mark.parametrize("given", [PRINTED, LISTED], ids=["printed", "listed"])
def test_the_same_rules_are_no_finding(given: str) -> None:
    assert check_pod_rules(pod_rules(FACTS, SHARED), given) == []


@pytest.mark.parametrize("number", range(len(RULES)))
def test_every_removed_rule_is_found(number: int) -> None:
    given = PRINTED.replace(f"{RULES[number]}\n", "", 1)
    assert check_pod_rules(pod_rules(FACTS, SHARED), given)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("10.0.1.9/32 counter", "10.0.1.0/24 counter"), "not in the table: ip daddr 10.0.1.0/24"),
        (("skuid 65532", "skuid 101"), "missing: expected meta skuid 65532 goto daemons"),
        (("policy accept;", "policy accept; comment x"), "not in the table: type filter"),
        (("  chain others {\n", "  chain others {\n    accept\n"), "not in the table: accept"),
        (("  chain others {", "  chain none {"), "chain none: not in the table: ip daddr"),
        (("\n}\n", "\n}\ndelete table inet byoc_agents_pod\n"), "not in the table: delete table"),
        (("\n}\n", "\n}\ntable ip nat {\n}\n"), "table ip nat: not in the table"),
        ((PRINTED, ""), "chain output: missing"),
    ],
)
def test_every_relaxation_is_found(change: tuple[str, str], said: str) -> None:
    assert change[0] in PRINTED
    found = check_pod_rules(pod_rules(FACTS, SHARED), PRINTED.replace(*change, 1))
    assert said in "\n".join(map(str, found))


@pytest.mark.parametrize("ending", ["\v", "\f", "\x1c", "\x85", "\u2028"])
def test_a_rule_in_a_comment_that_nft_does_not_end_is_found(ending: str) -> None:
    rule = next(line for line in RULES if "reject" in line)
    hidden = PRINTED.replace(rule, f"    #{ending}{rule.strip()}", 1)
    found = check_pod_rules(pod_rules(FACTS, SHARED), hidden)
    assert any("missing" in str(one) for one in found)


def test_another_order_is_found() -> None:
    """The first rule that matches decides."""
    lines = PRINTED.splitlines()
    first = next(n for n, line in enumerate(lines) if "10.0.1.9/32" in line)
    last = next(n for n, line in enumerate(lines) if "10.0.1.5/32" in line and "reject" in line)
    lines[first], lines[last] = lines[last], lines[first]
    (found,) = check_pod_rules(pod_rules(FACTS, SHARED), "\n".join(lines))
    assert str(found).startswith("table inet byoc_agents_pod chain others: another order")


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    flags = [f"--cidr={name}={cidr}" for name, all_of in CIDRS.items() for cidr in all_of]
    return ["policy", "egress-rules", "--uid=65532", "--dns=10.96.0.10/32", *flags]


def test_the_command_prints_and_checks_them(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*command, "--also=s3"]) == 0
    printed = capsys.readouterr()
    assert "not of a node" in printed.err
    file = tmp_path / "rules.nft"
    file.write_text(printed.out)
    assert main([*command, "--also=s3", f"--check={file}"]) == 0
    assert capsys.readouterr().out == ""
    assert main([*command, f"--check={file}"]) == 1
    assert "reject with tcp reset" in capsys.readouterr().out
    assert main([*command, f"--check={tmp_path / 'none'}"]) == 2
    assert "cannot be read (FileNotFoundError)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["egress-rules", "--uid", "0"], "--uid: invalid value '0': expected numbers from 1 on"),
        (["egress-rules", "--uid", "1,x"], "--uid: invalid value 'x'"),
        (["egress-rules", "--also", "s3"], "--also: invalid without --uid: expected both"),
        (["networkpolicy", "--uid", "1"], "--uid: invalid with networkpolicy: expected egress-"),
        (
            ["egress-rules", "--uid", "1", "--also", "1.2.3.4/8"],
            "--also: invalid value '1.2.3.4/8'",
        ),
    ],
)
@pytest.mark.usefixtures("command")
def test_options_that_cannot_be_are_mistakes(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("character", ["\v", "\f", "\r", "\x1c", "\x85", "\u2028", "\u2029"])
def test_only_a_line_feed_ends_a_comment(character: str) -> None:
    rule = next(line for line in RULES if "reject" in line)
    given = PRINTED.replace(rule, f"    #{character}{rule}")
    assert given != PRINTED
    assert check_pod_rules(pod_rules(FACTS, SHARED), given)
