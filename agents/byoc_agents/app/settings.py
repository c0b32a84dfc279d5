"""Settings: one frozen struct per daemon, read from the environment and a YAML file.

The environment takes precedence over the file. A field is `Annotated[type, Setting("BYOC_X", "its
meaning")]`; its YAML key is the variable's name in lower case without `BYOC_`. The environment is
read nowhere else, all mistakes are reported together, and secrets print as `***`.
"""

import codecs
import math
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import msgspec

from byoc_agents.app.files import (
    MAX_CERTIFICATES_BYTES,
    MAX_CONFIG_BYTES,
    MAX_SECRET_BYTES,
    NotReadableError,
    read_within,
)
from byoc_agents.errors import ConfigError, hide_setting_secrets

S = TypeVar("S", bound=msgspec.Struct)
# Variables that Kubernetes sets for a service whose name starts with byoc- (enableServiceLinks)
SERVICE_LINK = re.compile(
    r"\w+_SERVICE_HOST|\w+_SERVICE_PORT(_\w+)?|\w+_PORT(_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)?"
)
AWS_TOKEN_FILES = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
YAML_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "map", "seq"))
YAML_BOOLEANS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
# Python's own texts of int() and float(), which only repeat the value.
NUMBER_ERRORS = ("invalid literal for int()", "could not convert string to float")
MAX_TOKEN_CHARACTERS = 900  # with "Bearer " it fits in MAX_FIELD_BYTES of app/http_server.py
MAX_PORT = 65535  # RFC 9293: ports are 16 bits


class Setting(msgspec.Struct, frozen=True):
    """The rule for reading one field from a variable or from a YAML key.

    `parse` takes the text of a variable or of a YAML value, and returns the value. It raises
    ValueError with a description of the mistake. `meaning` completes "expected ..." in error
    messages and is printed in docs/configuration.md. The value of a `secret` may come from the
    file that the variable `<variable>_FILE` names, of at most `max_bytes`.
    """

    variable: str
    meaning: str
    secret: bool = False
    parse: Callable[[str], Any] | None = None
    max_bytes: int = MAX_SECRET_BYTES

    @property
    def key(self) -> str:
        """Return the key in a YAML file."""
        return self.variable.removeprefix("BYOC_").lower()


def settings_of(struct: type[msgspec.Struct]) -> dict[str, tuple[Setting, Any]]:
    """Return field name -> (setting, type) in the order of the struct."""
    hints = get_type_hints(struct, include_extras=True)
    found = {}
    for name in struct.__struct_fields__:
        setting = next(x for x in hints[name].__metadata__ if isinstance(x, Setting))
        found[name] = (setting, hints[name].__origin__)
    return found


def load_file(path: str | None) -> dict[str, str]:
    """Return the file's keys with their values as text. Raises ConfigError."""
    if path is None:
        return {}
    import yaml  # noqa: PLC0415  1 MiB, needed only with a file

    try:
        text = _decode(read_within(path, MAX_CONFIG_BYTES))
        root = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        why = ", ".join(filter(None, [error.context, error.problem]))
        raise ConfigError([f"--config {path}: {why}{line}"]) from error
    except Exception as error:  # PyYAML lets internal errors through
        why = [*str(error).splitlines(), type(error).__name__][0]
        raise ConfigError([f"--config {path}: {why}"]) from error
    if root is None or (isinstance(root, yaml.ScalarNode) and not root.value):
        return {}
    if not isinstance(root, yaml.MappingNode):
        raise ConfigError([f"--config {path}: expected a mapping of settings"])
    return _entries(root, path)


def _decode(content: bytes) -> str:
    """Return the text of UTF-8, or of UTF-16 with a byte order mark. Raises UnicodeDecodeError."""
    utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if utf_16 else "utf-8-sig")


def _entries(root: Any, path: str) -> dict[str, str]:
    """Return the keys and values as they are written, since settings are parsed from text.

    YAML's own types would change them: 012 becomes 10, 1.10 becomes 1.1, NO becomes false. Raises
    ConfigError.
    """
    entries: dict[str, str] = {}
    lines: dict[str, int] = {}
    mistakes = []
    for key_node, value_node in root.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node.value, str):
            mistakes.append(
                f"line {line} in {path}: expected the name of a setting before the colon"
            )
            continue
        key = key_node.value
        if key in lines:
            mistakes.append(f"{key} in {path}: is set in line {lines[key]} and again in {line}")
        elif value_node.tag not in YAML_TAGS:
            mistakes.append(
                f"{key} in {path}: could not determine a constructor for the tag "
                f"{value_node.tag!r}; expected a plain value"
            )
        elif not isinstance(value_node.value, str) or _missing(value_node):
            mistakes.append(f"{key} in {path}: expected a number, a text, true or false")
        lines.setdefault(key, line)
        entries[key] = value_node.value
    if mistakes:
        raise ConfigError(mistakes)
    return entries


def _missing(node: Any) -> bool:
    return not node.value and not node.style  # nothing after the colon, not even quotes


def load(
    structs: Sequence[type[msgspec.Struct]], environ: Mapping[str, str], file: Mapping[str, str]
) -> list[Any]:
    """Return one filled instance per struct. Raises ConfigError with the mistakes of all."""
    mistakes: list[str] = []
    filled = [_fill(struct, environ, file, mistakes) for struct in structs]
    if mistakes:
        raise ConfigError(list(dict.fromkeys(mistakes)))
    return [struct for struct in filled if struct is not None]


def unknown(
    structs: Sequence[type[msgspec.Struct]],
    environ: Mapping[str, str],
    file: Mapping[str, str],
    elsewhere: tuple[str, ...] = (),
) -> list[str]:
    """Return a mistake for each BYOC_ variable and each file key that no struct has.

    `elsewhere` are prefixes of the variables of daemons that do not run in this process.
    """
    settings = [setting for struct in structs for setting, _ in settings_of(struct).values()]
    variables = {s.variable for s in settings}
    variables |= {f"{s.variable}_FILE" for s in settings if s.secret}
    keys = {s.key for s in settings} | {f"{s.key}_file" for s in settings if s.secret}
    extra = [
        f"{key}: unknown setting in the file"
        for key in file
        if key not in keys and not f"BYOC_{key.upper()}".startswith(elsewhere)
    ]
    return extra + [
        f"{name}: unknown setting; docs/configuration.md lists all"
        for name in environ
        if name.startswith("BYOC_")
        and name not in variables
        and not name.startswith(elsewhere)
        and not SERVICE_LINK.fullmatch(name)
    ]


def unreadable_files(
    structs: Sequence[type[msgspec.Struct]],
    values: Sequence[msgspec.Struct],
    environ: Mapping[str, str],
) -> list[str]:
    """Return a mistake for each file named by a setting whose reading could block or never end.

    A missing file is not reported here but by the code that needs it. AWS's own variables for
    token files are checked too, since botocore reads those files in the event loop.
    """
    named = {name: environ.get(name, "") for name in AWS_TOKEN_FILES}
    for struct, value in zip(structs, values, strict=True):
        for field, (setting, _) in settings_of(struct).items():
            if setting.variable.endswith("_FILE"):
                named[setting.variable] = getattr(value, field)
    mistakes = []
    for variable, path in named.items():
        try:
            if path:
                read_within(path, MAX_CERTIFICATES_BYTES)
        except NotReadableError as error:
            mistakes.append(f"{variable}: {error}")
        except (OSError, ValueError):
            continue
    return mistakes


def describe(settings: msgspec.Struct) -> dict[str, Any]:
    """Return variable -> effective value, with *** for every secret that is set.

    URLs are shown without user, password and query.
    """
    shown = {}
    for name, (setting, _) in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if isinstance(value, str):
            value = hide_setting_secrets(setting.variable, value)
        elif isinstance(value, dict):
            value = {
                key: hide_setting_secrets(setting.variable, one) if isinstance(one, str) else one
                for key, one in value.items()
            }
        plain = msgspec.to_builtins(value, order="deterministic")
        shown[setting.variable] = "***" if setting.secret and value else plain
    return shown


def files_of(
    structs: Sequence[type[msgspec.Struct]],
    values: Sequence[msgspec.Struct],
    environ: Mapping[str, str],
    file: Mapping[str, str],
) -> list[str]:
    """Return the paths of all files that hold a secret, and of those that a setting names."""
    found = []
    for struct, value in zip(structs, values, strict=True):
        for field, (setting, _) in settings_of(struct).items():
            if setting.secret:
                found.append(_secret_file(setting, environ, file))
            elif setting.variable.endswith("_FILE"):
                found.append(getattr(value, field))
    return [path for path in found if path]


def _secret_file(setting: Setting, environ: Mapping[str, str], file: Mapping[str, str]) -> str:
    return environ.get(f"{setting.variable}_FILE") or file.get(f"{setting.key}_file") or ""


def _fill(
    struct: type[S], environ: Mapping[str, str], file: Mapping[str, str], mistakes: list[str]
) -> S | None:
    values: dict[str, Any] = {}
    before = len(mistakes)
    required = {f.name for f in msgspec.structs.fields(struct) if f.required}
    for name, (setting, kind) in settings_of(struct).items():
        try:
            text = _find(setting, kind, environ, file)
            if text is not None:
                values[name] = _convert(setting, kind, text)
            elif name in required:
                mistakes.append(f"{setting.variable}: is required: {setting.meaning}")
        except ValueError as error:
            mistakes.append(f"{setting.variable}: {error}: expected {setting.meaning}")
    if len(mistakes) > before:
        return None
    try:
        return struct(**values)
    except ValueError as error:  # from a __post_init__ that compares several fields
        mistakes.append(str(error))
        return None


def _find(
    setting: Setting, kind: Any, environ: Mapping[str, str], file: Mapping[str, str]
) -> str | None:
    if text := environ.get(setting.variable, "").strip():
        return text
    path = _secret_file(setting, environ, file)
    if setting.secret and path:
        try:
            text = read_within(path, setting.max_bytes).decode().strip()
        except NotReadableError:
            raise
        except (OSError, ValueError) as error:
            raise ValueError(f"the file {path} cannot be read ({type(error).__name__})") from error
        if not text:
            raise ValueError(f"the file {path} is empty")
        return text
    text = file.get(setting.key, "").strip()
    if kind is bool:
        text = YAML_BOOLEANS.get(text.lower(), text)
    return text or None


def _convert(setting: Setting, kind: Any, text: str) -> Any:
    shown = "***" if setting.secret else repr(text)
    try:
        value = setting.parse(text) if setting.parse else msgspec.convert(text, kind, strict=False)
    except (ValueError, msgspec.ValidationError) as error:
        reason = str(error) if setting.parse and not setting.secret else ""
        reason = "" if reason.startswith(NUMBER_ERRORS) else reason
        raise ValueError(f"invalid value {shown}{f' ({reason})' if reason else ''}") from error
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"invalid value {shown}")
    return value


# Parsers for several daemons. Each raises ValueError with a description of the mistake.


def name(text: str) -> str:
    """Return a name that is safe in an object key, a URI and a metric label."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", text):
        raise ValueError(
            "allowed are 1 to 128 of A-Z a-z 0-9 . _ -, beginning with a letter or digit"
        )
    return text


def account_id(text: str) -> str:
    """Return the 12 digits of an AWS account, leading zeros included."""
    if not re.fullmatch(r"[0-9]{12}", text):
        raise ValueError("not exactly 12 digits")
    return text


def number(minimum: float, maximum: float = math.inf) -> Callable[[str], float]:
    """Return a parser of a number from `minimum` to `maximum`, both included."""

    def parse(text: str) -> float:
        value = float(text)
        if not minimum <= value <= maximum:
            raise ValueError(f"must be {minimum:g} to {maximum:g}")
        return value

    return parse


def size(text: str) -> int:
    """Return the number of bytes in `268435456`, `256Mi`, `256MiB` or `1Gi`."""
    match = re.fullmatch(r"(\d+)\s*(?:([KMG])iB?)?", text)
    if not match or int(match[1]) == 0:
        raise ValueError("not a positive number of bytes, optionally with Ki, Mi or Gi")
    return int(match[1]) << 10 * " KMG".index(match[2] or " ")


def host_and_port(text: str) -> tuple[str, int]:
    """Return (host, port) of `127.0.0.1:9464` or `[::1]:0`."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+)):(\d{1,5})", text)
    if not match or int(match[3]) > MAX_PORT:
        raise ValueError("not a host:port")
    return match[1] or match[2], int(match[3])


def bearer_tokens(text: str) -> str:
    """Return the tokens of clients, one per line during a rotation, if each fits in a header."""
    if any(len(token) > MAX_TOKEN_CHARACTERS for token in text.split()):
        raise ValueError("too long")
    return text


def host_names(text: str) -> frozenset[str]:
    """Return the names of `sqs.eu-west-1.amazonaws.com, api.example.com`, in lower case."""
    names = frozenset(name.strip().lower().rstrip(".") for name in text.split(","))
    if wrong := sorted(
        n for n in names if not re.fullmatch(r"[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?", n)
    ):
        raise ValueError(f"{wrong[0]!r} is not a host name")
    return names


def level(text: str) -> str:
    """Return the name of a log level."""
    if text.lower() not in {"debug", "info", "warning", "error"}:
        raise ValueError("unknown level")
    return text.lower()


class CoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of every daemon."""

    organization_id: Annotated[
        str, Setting("BYOC_ORGANIZATION_ID", "the id of the organization", parse=name)
    ]
    service_id: Annotated[
        str, Setting("BYOC_SERVICE_ID", "the id of the ClickHouse service", parse=name)
    ]
    region: Annotated[str, Setting("BYOC_REGION", "the AWS region of this pod", parse=name)]
    replica: Annotated[str, Setting("BYOC_REPLICA", "the name of the pod", parse=name)] = (
        msgspec.field(default_factory=platform.node)
    )
    pod_uid: Annotated[
        str, Setting("BYOC_POD_UID", "metadata.uid of the pod, from the downward API", parse=name)
    ] = ""
    state_dir: Annotated[
        str, Setting("BYOC_STATE_DIR", "a writable directory for spools and ledgers")
    ] = "/var/lib/byoc-agents"
    listen: Annotated[
        tuple[str, int],
        Setting("BYOC_LISTEN", "host:port; port 0 selects a free port", parse=host_and_port),
    ] = ("127.0.0.1", 9464)
    metrics_token: Annotated[
        str,
        Setting(
            "BYOC_METRICS_TOKEN",
            "the bearer token that /metrics requires, at most 900 characters; not set: none",
            secret=True,
            parse=bearer_tokens,
        ),
    ] = ""
    metrics_token_file: Annotated[
        str, Setting("BYOC_METRICS_TOKEN_FILE", "a file with that token, reloaded when it changes")
    ] = ""
    spool_max_bytes: Annotated[
        int, Setting("BYOC_SPOOL_MAX_BYTES", "a number of bytes, e.g. 256Mi", parse=size)
    ] = 256 * 1024**2
    ledger_max_bytes: Annotated[
        int, Setting("BYOC_LEDGER_MAX_BYTES", "a number of bytes, e.g. 64Mi", parse=size)
    ] = 64 * 1024**2
    ledger_keep_bodies: Annotated[
        bool, Setting("BYOC_LEDGER_KEEP_BODIES", "true to keep the exact bytes of each message")
    ] = False
    shutdown_grace_seconds: Annotated[
        float, Setting("BYOC_SHUTDOWN_GRACE_SECONDS", "0 to 3600 seconds", parse=number(0, 3600))
    ] = 20.0
    log_level: Annotated[
        str, Setting("BYOC_LOG_LEVEL", "debug, info, warning or error", parse=level)
    ] = "info"
    https_proxy: Annotated[
        str,
        Setting("BYOC_HTTPS_PROXY", "http://host:port of the proxy", secret=True),
    ] = ""
    ca_file: Annotated[str, Setting("BYOC_CA_FILE", "a PEM file with additional CAs")] = ""
    private_hosts: Annotated[
        frozenset[str],
        Setting(
            "BYOC_PRIVATE_HOSTS",
            "host names, separated by commas, that may resolve to private addresses",
            parse=host_names,
        ),
    ] = frozenset()
    seccomp: Annotated[
        Literal["on", "off", "require"],
        Setting("BYOC_SECCOMP", "on, off, or require to stop if the kernel refuses the filter"),
    ] = "on"
    allow_insecure_endpoints: Annotated[
        bool, Setting("BYOC_ALLOW_INSECURE_ENDPOINTS", "true to allow plain http in local runs")
    ] = False
