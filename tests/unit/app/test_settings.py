"""Settings: all mistakes at once, each naming its variable; secrets never printed."""

from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from byoc_agents.app.settings import (
    CoreSettings,
    Setting,
    account_id,
    describe,
    host_and_port,
    load,
    load_file,
    name,
    number,
    settings_of,
    size,
    unknown,
)
from byoc_agents.errors import ConfigError

MINIMUM = {"BYOC_ORGANIZATION_ID": "org", "BYOC_SERVICE_ID": "svc", "BYOC_REGION": "eu-west-1"}
SECRET = "hunter2-very-secret"
NAMES = "allowed are 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
ADDRESS = "host:port; port 0 selects a free port"


class Own(msgspec.Struct, frozen=True, kw_only=True):
    """Settings like those of a daemon."""

    token: Annotated[str, Setting("BYOC_X_TOKEN", "a token", secret=True)]
    pin: Annotated[int, Setting("BYOC_X_PIN", "a number", secret=True)] = 0
    seconds: Annotated[float, Setting("BYOC_X_SECONDS", "1 to 9", parse=number(1, 9))] = 5.0
    count: Annotated[int, Setting("BYOC_X_COUNT", "an integer")] = 1
    loud: Annotated[bool, Setting("BYOC_X_LOUD", "true or false")] = False
    ratio: Annotated[float, Setting("BYOC_X_RATIO", "a number")] = 0.5

    def __post_init__(self) -> None:
        if self.count > self.seconds:
            raise ValueError("BYOC_X_COUNT: must not be over BYOC_X_SECONDS")


def own(environ: dict[str, str], file: dict[str, str] | None = None) -> Own:
    (found,) = load([Own], environ, file or {})
    assert isinstance(found, Own)
    return found


def mistakes(environ: dict[str, str], file: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as raised:
        load([CoreSettings, Own], environ, file or {})
    return raised.value.mistakes


def test_all_mistakes_of_all_daemons_are_reported_at_once_by_name() -> None:
    environ = {"BYOC_REGION": "a b", "BYOC_LISTEN": "nowhere", "BYOC_X_COUNT": "many"}
    assert mistakes(environ) == (
        "BYOC_ORGANIZATION_ID: is required: the id of the organization",
        "BYOC_SERVICE_ID: is required: the id of the ClickHouse service",
        f"BYOC_REGION: invalid value 'a b' ({NAMES}): expected the AWS region of this pod",
        f"BYOC_LISTEN: invalid value 'nowhere' (not a host:port): expected {ADDRESS}",
        "BYOC_X_TOKEN: is required: a token",
        "BYOC_X_COUNT: invalid value 'many': expected an integer",
    )


def test_a_rule_over_several_settings_is_a_mistake_too() -> None:
    assert mistakes(MINIMUM | {"BYOC_X_TOKEN": "t", "BYOC_X_COUNT": "8"}) == (
        "BYOC_X_COUNT: must not be over BYOC_X_SECONDS",
    )


def test_the_environment_wins_over_the_file_and_the_file_over_the_default() -> None:
    file = {"x_token": "file", "x_count": "3", "x_seconds": "7"}
    found = own({"BYOC_X_COUNT": "4", "BYOC_X_SECONDS": " "}, file)
    assert (found.token, found.count, found.seconds, found.loud) == ("file", 4, 7.0, False)


def test_a_secret_comes_from_the_file_that_a_setting_names(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    path = str(tmp_path / "token")
    assert own({"BYOC_X_TOKEN_FILE": path}).token == SECRET
    assert own({}, {"x_token_file": path}).token == SECRET
    assert own({"BYOC_X_TOKEN": "direct", "BYOC_X_TOKEN_FILE": path}).token == "direct"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_secret_file_that_is_missing_empty_or_no_text_is_named(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    (mistake,) = mistakes(MINIMUM | {"BYOC_X_TOKEN_FILE": str(path)})
    assert mistake.startswith(f"BYOC_X_TOKEN: the file {path} ")


def test_no_secret_is_printed_in_a_mistake_or_a_description() -> None:
    environ = MINIMUM | {"BYOC_X_TOKEN": "t", "BYOC_X_PIN": SECRET}
    assert mistakes(environ) == ("BYOC_X_PIN: invalid value ***: expected a number",)
    shown = describe(own({"BYOC_X_TOKEN": SECRET, "BYOC_X_PIN": "4711"}))
    assert (shown["BYOC_X_TOKEN"], shown["BYOC_X_PIN"]) == ("***", "***")
    assert describe(own({"BYOC_X_TOKEN": SECRET}))["BYOC_X_PIN"] == 0  # not set


def test_a_description_has_every_setting() -> None:
    (core,) = load([CoreSettings], MINIMUM, {})
    shown = describe(core)
    assert list(shown) == [setting.variable for setting, _ in settings_of(CoreSettings).values()]
    assert (shown["BYOC_REGION"], shown["BYOC_SPOOL_MAX_BYTES"]) == ("eu-west-1", 256 << 20)
    assert tuple(shown["BYOC_LISTEN"]) == ("127.0.0.1", 9464)


def test_unknown_settings_are_mistakes_but_not_what_kubernetes_sets() -> None:
    environ = MINIMUM | {
        "BYOC_REGOIN": "x",
        "BYOC_REGION_FILE": "only secrets can be read from a file",
        "BYOC_X_TOKEN_FILE": "known",
        "BYOC_STATE_QUEUE_URL": "of another daemon",
        "PATH": "not ours",
        "BYOC_AGENTS_SERVICE_HOST": "10.0.0.1",
        "BYOC_AGENTS_SERVICE_PORT": "80",
        "BYOC_AGENTS_SERVICE_PORT_WEBHOOK": "80",
        "BYOC_AGENTS_PORT": "tcp://10.0.0.1:80",
        "BYOC_AGENTS_PORT_80_TCP": "tcp://10.0.0.1:80",
        "BYOC_AGENTS_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    file = {"region": "x", "x_token_file": "known", "regoin": "x", "region_file": "x"}
    found = unknown([CoreSettings, Own], environ, file, ("BYOC_STATE_Q",))
    assert [mistake.partition(":")[0] for mistake in found] == [
        "regoin",
        "region_file",
        "BYOC_REGOIN",
        "BYOC_REGION_FILE",
    ]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"region: eu-west-1\nx_count: 3\nx_loud: yes\nx_ratio: 0.25",
         {"region": "eu-west-1", "x_count": "3", "x_loud": "yes", "x_ratio": "0.25"}),
        (b"", {}),
        (b"# nothing set\n", {}),
        (b"\xef\xbb\xbfa: 1\r\nb: x\r\n", {"a": "1", "b": "x"}),
        ("a: é\n".encode("utf-16"), {"a": "é"}),
        (b"a: '012'\nb: \"NO\"\nc: ''", {"a": "012", "b": "NO", "c": ""}),
        (b"a: &id 007\nb: *id", {"a": "007", "b": "007"}),
    ],
)  # fmt: skip
def test_a_yaml_file_is_read_as_text(
    tmp_path: Path, content: bytes, expected: dict[str, str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    assert load_file(str(path)) == expected


@pytest.mark.parametrize(
    "written",
    ["012345670123", "0777", "0o17", "0x1F", "0b11", "12_345", "1_2.3", "190:20:30", "1.10", "1e3",
     "+1", ".5", "1.", ".inf", "NO", "no", "on", "off", "yes", "null", "~", "TRUE", "False",
     "2026-01-01", "2026-13-45"],
)  # fmt: skip
def test_a_yaml_value_keeps_its_text(tmp_path: Path, written: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"region: {written}\n")
    assert load_file(str(path)) == {"region": written}


@pytest.mark.parametrize(
    ("written", "expected"),
    [("true", True), ("True", True), ("yes", True), ("on", True), ("false", False), ("off", False)],
)
def test_a_yaml_boolean_may_be_any_word_that_yaml_has(
    tmp_path: Path, written: str, expected: bool
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"allow_insecure_endpoints: {written}\nreplica: {written}\n")
    must = {"BYOC_ORGANIZATION_ID": "o", "BYOC_SERVICE_ID": "s", "BYOC_REGION": "r"}
    (core,) = load([CoreSettings], must, load_file(str(path)))
    assert (core.allow_insecure_endpoints, core.replica) == (expected, written)


def test_the_bucket_owner_is_exactly_12_digits() -> None:
    assert account_id("012345670123") == "012345670123"
    for wrong in ("1402433619", "0123456701234", "01234567012a", "\u0661" * 12):
        with pytest.raises(ValueError, match="exactly 12 digits"):
            account_id(wrong)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"- a\n- b", "expected a mapping"),
        (b"just text", "expected a mapping"),
        (b"a: 1\nb: [unclosed", "in line"),
        (b"a: 1\n b: 2", "line 2"),
        (b"a: [1]\nb: {c: 1}\nd:", "expected a number, a text"),
        (b"a: 1\nb: 2\na: 3", "a in .*config.yaml: is set in line 1 and again in 3"),
        (b"\ta: 1", r"'\\t' that cannot start any token in line 1"),
        (b"a: &x 1\n<<: {b: 2}", "<< in .*config.yaml: expected a number"),
        (b"? [a]\n: 1", "line 1 in .*config.yaml: expected the name of a setting"),
        (b"a: {b: 1, b: 2}", "expected a number, a text"),
        (b"--- \na: 1\n--- \na: 2", "expected a single document"),
        (b"\xff\xfe\xff", "config.yaml: "),
        (b"a: !!timestamp x", "config.yaml: "),  # found by `make fuzz`: PyYAML trips over it
        (b"a: !!int ''", "config.yaml: "),
        (b"a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
    ],
)
def test_a_yaml_mistake_is_a_config_error(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected) as raised:
        load_file(str(path))
    assert all("config.yaml" in mistake for mistake in raised.value.mistakes)


def test_a_yaml_file_tells_all_its_wrong_values_at_once(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("a: [1]\nb: {c: 1}\nd:")
    with pytest.raises(ConfigError) as raised:
        load_file(str(path))
    assert [mistake[0] for mistake in raised.value.mistakes] == ["a", "b", "d"]


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        load_file(str(tmp_path / "missing.yaml"))
    assert load_file(None) == {}


@pytest.mark.parametrize(
    ("text", "value"), [("1", 1), ("256Mi", 256 << 20), ("2 KiB", 2048), ("1Gi", 1 << 30)]
)
def test_sizes(text: str, value: int) -> None:
    assert size(text) == value


@pytest.mark.parametrize("text", ["0", "", "-1", "1.5Mi", "1Ti", "1MB", "Mi", "0Gi"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="positive number of bytes"):
        size(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("127.0.0.1:0", ("127.0.0.1", 0)), ("[::1]:9", ("::1", 9)), ("h:65535", ("h", 65535))],
)
def test_addresses(text: str, value: tuple[str, int]) -> None:
    assert host_and_port(text) == value


@pytest.mark.parametrize("text", ["h", ":1", "h:", "h:65536", "::1:80", "[::1]", "h:-1"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        host_and_port(text)


@pytest.mark.parametrize("text", ["", "-a", "a/b", "a b", "ä", "a" * 129, "a\n"])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="allowed"):
        name(text)


VARIABLES = [s.variable for struct in (CoreSettings, Own) for s, _ in settings_of(struct).values()]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(variable=st.sampled_from(VARIABLES), text=st.text(max_size=20) | st.floats().map(str))
@example("BYOC_SHUTDOWN_GRACE_SECONDS", "nan")
@example("BYOC_X_RATIO", "inf")
@example("BYOC_X_COUNT", "1" * 5000)
@example("BYOC_SPOOL_MAX_BYTES", "1" * 5000)
@example("BYOC_LISTEN", "h:٣")
def test_any_text_is_a_value_or_a_mistake_that_names_the_variable(variable: str, text: str) -> None:
    found: tuple[str, ...] = ()
    try:
        load([CoreSettings, Own], MINIMUM | {"BYOC_X_TOKEN": "t", variable: text}, {})
    except ConfigError as error:
        found = error.mistakes or ("nothing said",)
    named = variable.removesuffix("_FILE")  # a mistake in the file of a secret names the secret
    assert [mistake for mistake in found if not mistake.startswith(named)] == []
