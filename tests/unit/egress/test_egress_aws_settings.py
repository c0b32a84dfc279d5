"""AWS's variables and files: each setting is honored, or a mistake names the way out."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from byoc_agents.app.cli import main
from byoc_agents.egress.aws import aws_session
from byoc_agents.egress.destinations import credential_destinations, https_destination
from byoc_agents.egress.gate import Gate
from byoc_agents.errors import ConfigError
from byoc_agents.sinks.s3 import S3Sink
from lab.fakes.http import FakeHttp, always, reply
from tests.unit.sinks.s3_sinks import MESSAGE

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret"}
IRSA = {"AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/r", "AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}
OWN_S3 = {"AWS_ENDPOINT_URL_S3": "https://s3.eu-west-1.amazonaws.com"}


def mistakes(environ: Mapping[str, str], *services: str) -> list[str]:
    try:
        credential_destinations(environ, "eu-west-1", services=services or ("s3",))
    except ConfigError as error:
        return list(error.mistakes)
    return []


def config(directory: Path, text: str) -> dict[str, str]:
    path = directory / "config"
    path.write_text(text)
    return {"AWS_CONFIG_FILE": str(path)}


FILE_SETTINGS = [
    (
        "endpoint_url = https://x",
        ("AWS_CONFIG_FILE, endpoint_url: is not supported for s3: expected AWS_ENDPOINT_URL_S3"),
    ),
    (
        "services = mine",
        ("AWS_CONFIG_FILE, services: is not supported for s3: expected AWS_ENDPOINT_URL_S3"),
    ),
    (
        "ignore_configured_endpoint_urls = true",
        (
            "AWS_CONFIG_FILE, ignore_configured_endpoint_urls:"
            " is not supported: expected AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
        ),
    ),
    (
        "sts_regional_endpoints = legacy",
        (
            "AWS_CONFIG_FILE, sts_regional_endpoints: is not"
            " supported: expected AWS_STS_REGIONAL_ENDPOINTS"
        ),
    ),
    (
        "use_fips_endpoint = true",
        (
            "AWS_CONFIG_FILE, use_fips_endpoint: is not supported for s3:"
            " expected it unset and AWS_ENDPOINT_URL_S3=https://s3-fips.REGION.amazonaws.com"
        ),
    ),
    (
        "use_dualstack_endpoint = True",
        (
            "AWS_CONFIG_FILE, use_dualstack_endpoint: is not supported"
            " for s3: expected it unset and"
            " AWS_ENDPOINT_URL_S3=https://s3.dualstack.REGION.amazonaws.com"
        ),
    ),
    (
        "s3 =\n  addressing_style = path",
        (
            "AWS_CONFIG_FILE, s3 addressing_style: is not supported:"
            " expected it unset; an endpoint is addressed by path, and a bucket of AWS by its"
            " own host"
        ),
    ),
    (
        "s3 =\n  use_accelerate_endpoint = true",
        (
            "AWS_CONFIG_FILE, s3 use_accelerate_endpoint: is"
            " not supported: expected it unset, since no gateway endpoint serves it"
        ),
    ),
    (
        "s3 =\n  use_dualstack_endpoint = true",
        (
            "AWS_CONFIG_FILE, s3 use_dualstack_endpoint: is not"
            " supported: expected it unset and"
            " AWS_ENDPOINT_URL_S3=https://s3.dualstack.REGION.amazonaws.com"
        ),
    ),
    (
        "s3 =\n  us_east_1_regional_endpoint = legacy",
        (
            "AWS_CONFIG_FILE, s3"
            " us_east_1_regional_endpoint: `legacy` is not supported: expected regional"
        ),
    ),
]


@pytest.mark.parametrize(
    ("text", "expected"), FILE_SETTINGS, ids=[text for text, _ in FILE_SETTINGS]
)
def test_a_setting_of_the_file_that_changes_an_endpoint_is_a_mistake(
    tmp_path: Path, text: str, expected: str
) -> None:
    environ = config(tmp_path, f"[default]\n{text}\n[services mine]\ns3 =\n  endpoint_url = x\n")
    assert mistakes(environ) == [expected]


@pytest.mark.parametrize(
    "text", [text for text, _ in FILE_SETTINGS if "ignore" not in text and "sts_" not in text]
)
def test_a_variable_with_the_endpoint_makes_such_a_setting_harmless(
    tmp_path: Path, text: str
) -> None:
    environ = config(tmp_path, f"[default]\n{text}\n[services mine]\ns3 =\n  endpoint_url = x\n")
    assert mistakes(environ | OWN_S3) == []


def test_every_service_without_an_endpoint_of_its_own_is_named(tmp_path: Path) -> None:
    environ = config(tmp_path, "[default]\nendpoint_url = https://x\n") | IRSA
    assert [mistake.split(": ")[1] for mistake in mistakes(environ, "sqs")] == [
        "is not supported for sqs",
        "is not supported for sts",
    ]
    assert mistakes(environ | {"AWS_ENDPOINT_URL_SQS": "https://q"}, "sqs") == [
        "AWS_CONFIG_FILE, endpoint_url: is not supported for sts: expected AWS_ENDPOINT_URL_STS"
    ]
    assert mistakes(environ | {"AWS_ENDPOINT_URL": "https://all"}, "sqs") == []
    assert mistakes(environ | {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}, "sqs") == []


IDENTITIES = [
    ("role_arn = r\nweb_identity_token_file = /t", "AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE"),
    ("role_arn = r\nsource_profile = other", "access keys, IRSA or EKS Pod Identity"),
    ("credential_source = Environment", "access keys, IRSA or EKS Pod Identity"),
    ("credential_process = /bin/keys", "access keys, IRSA or EKS Pod Identity"),
    ("sso_session = s\nsso_account_id = 1\nsso_role_name = r", "access keys, IRSA or EKS"),
    ("sso_start_url = https://x", "access keys, IRSA or EKS Pod Identity"),
    ("login_session = s", "access keys, IRSA or EKS Pod Identity"),
]


@pytest.mark.parametrize(("text", "instead"), IDENTITIES, ids=[text for text, _ in IDENTITIES])
def test_an_identity_of_the_file_that_is_not_used_is_a_mistake(
    tmp_path: Path, text: str, instead: str
) -> None:
    environ = config(tmp_path, f"[default]\n{text}\n")
    found = mistakes(environ)
    named = {f"AWS_CONFIG_FILE, {line.split(' =')[0]}" for line in text.splitlines()}
    assert {mistake.split(": ")[0] for mistake in found} == named
    assert any(instead in mistake for mistake in found)
    assert mistakes(environ | KEYS) == mistakes(environ | IRSA) == []


def test_both_files_and_the_chosen_profile_count(tmp_path: Path) -> None:
    environ = config(tmp_path, "[profile x]\nrole_arn = r\n[x]\nsso_start_url = s\n[default]\n")
    keys = tmp_path / "credentials"
    keys.write_text("[x]\ncredential_process = p\n")
    environ["AWS_SHARED_CREDENTIALS_FILE"] = str(keys)
    assert mistakes(environ) == []
    for variable in ("AWS_PROFILE", "AWS_DEFAULT_PROFILE"):
        assert [found.split(": ")[0] for found in mistakes(environ | {variable: "x"})] == [
            "AWS_CONFIG_FILE, role_arn",
            "AWS_SHARED_CREDENTIALS_FILE, credential_process",
        ]
        assert mistakes(environ | {variable: "y"}) == [
            f"{variable}: 'y' is not a profile: expected a profile of AWS's files"
        ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[default\nx = 1\n", "line 1 cannot be parsed: expected `key = value`"),
        (b"[default]\nwhat is this\n", "line 2 cannot be parsed: expected `key = value`"),
        (b"[default]\nregion = \xff\n", "is not UTF-8: expected a text file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_mistake(
    tmp_path: Path, content: bytes, expected: str
) -> None:
    path = tmp_path / "config"
    path.write_bytes(content)
    assert mistakes({"AWS_CONFIG_FILE": str(path)}) == [f"AWS_CONFIG_FILE: {expected}"]


@pytest.mark.parametrize("variable", ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"])
def test_a_fifo_in_the_place_of_a_file_does_not_block_the_start(
    tmp_path: Path, variable: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (found,) = mistakes({variable: str(tmp_path / "fifo")})
    assert found.startswith(f"{variable}: ")
    assert "is a FIFO; expected a regular file" in found


def test_no_file_and_an_empty_device_are_fine(tmp_path: Path) -> None:
    assert mistakes({"AWS_CONFIG_FILE": str(tmp_path / "missing")}) == []
    assert mistakes({"AWS_CONFIG_FILE": os.devnull, "HOME": str(tmp_path)}) == []


def test_the_files_of_the_home_directory_count(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nsso_start_url = s\n")
    (found,) = mistakes({"HOME": str(tmp_path)})
    assert found.startswith("AWS_CONFIG_FILE, sso_start_url: ")


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        (KEYS | {"AWS_SECRET_ACCESS_KEY": "sécret"}, "AWS_SECRET_ACCESS_KEY: holds a character"),
        (KEYS | {"AWS_ACCESS_KEY_ID": "AKIA\u200b"}, "AWS_ACCESS_KEY_ID: holds a character"),
        (KEYS | {"AWS_SESSION_TOKEN": "tökén"}, "AWS_SESSION_TOKEN: holds a character"),
        ({"AWS_CONTAINER_AUTHORIZATION_TOKEN": "ö"}, "AWS_CONTAINER_AUTHORIZATION_TOKEN: holds a"),
        ({"AWS_ACCESS_KEY_ID": "AKIA"}, "AWS_ACCESS_KEY_ID: is set without AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ROLE_ARN": "r"}, "AWS_ROLE_ARN: is set without AWS_WEB_IDENTITY_TOKEN_FILE"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/t"}, "AWS_WEB_IDENTITY_TOKEN_FILE: is set without"),
        ({"AWS_S3_US_EAST_1_REGIONAL_ENDPOINT": "legacy"}, "`legacy` is not supported"),
    ],
    ids=str,
)
def test_an_unusable_variable_is_a_mistake_that_repeats_no_value(
    environ: dict[str, str], expected: str
) -> None:
    (found,) = mistakes(environ)
    assert expected in found
    assert not {"sécret", "AKIA", "tökén", "/t"} & set(found.split())


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("aws_secret_access_key = sécret", "aws_secret_access_key: holds a character that is not"),
        ("aws_session_token = a b", "aws_session_token: holds white space"),
    ],
)
def test_an_unusable_key_of_a_file_is_a_mistake(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "credentials"
    path.write_text(f"[default]\naws_access_key_id = AKIA\n{line}\n")
    (found,) = mistakes({"AWS_SHARED_CREDENTIALS_FILE": str(path)})
    assert found.startswith(f"AWS_SHARED_CREDENTIALS_FILE, {expected}")


def test_a_path_may_have_any_letter() -> None:
    environ = IRSA | {"AWS_WEB_IDENTITY_TOKEN_FILE": "/tökén"}
    assert mistakes(environ) == []


def test_check_config_names_the_mistakes_of_awss_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    settings = config(tmp_path, "[default]\nendpoint_url = https://x\ncredential_process = p\n")
    settings |= {
        "BYOC_ORGANIZATION_ID": "o",
        "BYOC_SERVICE_ID": "s",
        "BYOC_REGION": "eu-west-1",
        "BYOC_BILLING_BUCKET": "usage",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    assert main(["check-config", "billing-scraper"]) == 2
    said = capsys.readouterr().err
    assert "AWS_CONFIG_FILE, endpoint_url: is not supported for s3" in said
    assert "AWS_CONFIG_FILE, credential_process: is not supported" in said


async def test_the_client_goes_where_the_table_says_whatever_the_file_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`check-config` refuses these. A file that changes after the start does not move the sink."""
    text = "[default]\nuse_fips_endpoint = true\ns3 =\n  use_accelerate_endpoint = true\n"
    text += "  use_dualstack_endpoint = true\n  addressing_style = virtual\n"
    for name, value in (config(tmp_path, text) | KEYS).items():
        monkeypatch.setenv(name, value)
    async with FakeHttp(always(reply(503))) as s3:
        gate = Gate([https_destination(s3.url)])
        session = aws_session(gate, "eu-west-1")
        async with S3Sink(session, gate, "usage", region="eu-west-1", endpoint_url=s3.url) as sink:
            await sink.send([MESSAGE])
        (request,) = s3.requests
        assert request.path == f"/usage/{MESSAGE.id}"


async def test_the_payload_is_signed_if_the_file_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "[default]\ns3 =\n  payload_signing_enabled = true\n"
    assert mistakes(config(tmp_path, text)) == []
    for name, value in (config(tmp_path, text) | KEYS).items():
        monkeypatch.setenv(name, value)
    async with FakeHttp(always(reply(503))) as s3:
        gate = Gate([https_destination(s3.url)])
        session = aws_session(gate, "eu-west-1")
        async with S3Sink(session, gate, "usage", region="eu-west-1", endpoint_url=s3.url) as sink:
            await sink.send([MESSAGE])
    assert len(s3.requests[0].headers["x-amz-content-sha256"]) == 64
