"""The customer's policy: who may request, what may be opened, for how long, and who approves.

The file is YAML of the customer's own repository, mounted as a ConfigMap. All values are read as
text, so that YAML's own types change none (`07:00` is not 420). A key that is unknown or is given
twice is a mistake: a limit with a typing error must not look as if it held.
"""

import base64
import binascii
import datetime as dt
import re
import zoneinfo
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

import msgspec

from byoc_agents.access.documents import (
    CLICKHOUSE,
    ENDPOINTS,
    MAX_PENDING_SECONDS,
    MAX_SECONDS,
    AccessRequest,
    Approval,
    Identifier,
    parse_time,
    sha256,
)
from byoc_agents.access.errors import PolicyError
from byoc_agents.envelope import KEY_BYTES, VerifyingKey

MAX_POLICY_BYTES = 64 * 1024
MAX_BREAK_GLASS_SECONDS = 30 * 60
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EXPECTED = "expected a policy: docs/access.md has an example"
RULES = frozenset(
    {
        *("disabled", "role", "break_glass", "expired", "duration", "endpoints", "ticket"),
        *("vendor_keys", "approvals", "csr"),
    }
)
"""The names of the rules by which a request or an approved grant is refused."""

Approvals = Annotated[int, msgspec.Meta(ge=1, le=5)]
RoleName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}\Z")]
Duration = str  # `30m`; see `parse_duration`
ApprovalMode = Literal[
    "local",  # a person at the customer approves each request with the command line: the default
    "signed",  # as `local`, and the approval is signed by a key of the customer
    "transparency",  # nobody approves; every step is recorded
]


class PolicyPart(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of the file's parts."""


class KeyEntry(PolicyPart, frozen=True, kw_only=True):
    """A pinned public key."""

    id: Identifier
    ed25519: str  # 32 bytes in base64
    not_after: str = ""

    def to_key(self) -> VerifyingKey:
        """Return the key. Raises ValueError."""
        try:
            public = base64.b64decode(self.ed25519, validate=True)
        except (binascii.Error, ValueError):
            public = b""
        if len(public) != KEY_BYTES:
            raise ValueError(f"{self.id}: ed25519: expected {KEY_BYTES} bytes in base64")
        return VerifyingKey(self.id, public, parse_time(self.not_after) if self.not_after else None)


class OpeningHours(PolicyPart, frozen=True, kw_only=True, rename={"start": "from", "end": "to"}):
    """When access may begin."""

    days: str  # `mon-fri`, or `mon,wed`
    start: str
    end: str
    zone: str

    def contain(self, wall_ms: int) -> bool:
        """Return whether this moment is within the hours."""
        moment = dt.datetime.fromtimestamp(wall_ms / 1000, tz=_zone(self.zone))
        minute = moment.hour * 60 + moment.minute
        return moment.weekday() in _days(self.days) and (
            _minute(self.start) <= minute < _minute(self.end)
        )

    def __post_init__(self) -> None:
        """Check the texts. Raises ValueError."""
        _zone(self.zone)
        _days(self.days)
        if _minute(self.start) >= _minute(self.end):
            raise ValueError("hours: expected `from` before `to`, both within one day")


class Role(PolicyPart, frozen=True, kw_only=True):
    """What a request may name. The rights in ClickHouse are those of a role there.

    A role without the endpoint `clickhouse` has no role there: its grants have no user.
    """

    clickhouse_role: RoleName | None = None
    endpoints: tuple[Identifier, ...] = (CLICKHOUSE,)
    pre_approved: bool = False
    approvals_needed: Approvals | None = None  # None = as the policy
    max_duration: Duration | None = None  # None = as the policy


class PolicyFile(PolicyPart, frozen=True, kw_only=True):
    """The content of the file."""

    version: Literal["1"]
    vendor_keys: Annotated[tuple[KeyEntry, ...], msgspec.Meta(min_length=1, max_length=8)]
    roles: Annotated[dict[Identifier, Role], msgspec.Meta(min_length=1, max_length=32)]
    enabled: bool = True
    approval: ApprovalMode = "local"
    threshold: Annotated[int, msgspec.Meta(ge=1, le=2)] = 1
    approvers: Annotated[tuple[KeyEntry, ...], msgspec.Meta(max_length=32)] = ()
    approvals_needed: Approvals = 1
    max_duration: Duration = "1h"
    pending_lapses_after: Duration = "4h"
    max_open: Annotated[int, msgspec.Meta(ge=1, le=32)] = 2
    max_open_per_engineer: Annotated[int, msgspec.Meta(ge=1, le=32)] = 1
    hours: OpeningHours | None = None
    ticket: str = ""  # a regular expression; "" = any
    replicas: Literal["any", "all"] = "any"  # how many must be reached before access opens
    break_glass: bool = False
    leases: bool = False  # access ends if the control plane has not answered for five minutes
    tables: Literal["hashed", "plain"] = "hashed"  # how the views show names of tables
    allow_open_system: bool = False  # accept servers on which every user reads all of `system`


class Policy(msgspec.Struct, frozen=True, dict=True):  # `dict`: for cached properties
    """A checked policy, the SHA-256 of its file, and the file's bytes."""

    file: PolicyFile
    sha256: str
    content: bytes

    @cached_property
    def vendor_keys(self) -> tuple[VerifyingKey, ...]:
        """The vendor's pinned keys."""
        return tuple(entry.to_key() for entry in self.file.vendor_keys)

    @cached_property
    def approver_keys(self) -> tuple[VerifyingKey, ...]:
        """The customer's keys, for the mode `signed`."""
        return tuple(entry.to_key() for entry in self.file.approvers)

    @property
    def pending_ms(self) -> int:
        """After how many milliseconds an unanswered request lapses."""
        return parse_duration(self.file.pending_lapses_after) * 1000

    def max_seconds(self, role: Role) -> int:
        """Return the longest duration of a grant with this role, seconds."""
        limits = [self.file.max_duration, *([role.max_duration] if role.max_duration else [])]
        return min(MAX_SECONDS, *map(parse_duration, limits))

    def approvals_needed(self, request: AccessRequest) -> int:
        """Return how many people must approve; 0 if none has to.

        A role that states its own number always needs that many, in every mode.
        """
        role = self.file.roles[request.role]
        if role.approvals_needed is not None:
            return role.approvals_needed
        if request.reason.kind == "break_glass" and self.file.break_glass:
            return 0
        if role.pre_approved or self.file.approval == "transparency":
            return 0
        return self.file.approvals_needed

    def is_lesser_role(self, role: str, requested: str) -> bool:
        """Return whether an approver may give `role` instead of `requested`.

        The file lists the roles from the least to the most.
        """
        names = list(self.file.roles)
        known = role in names and requested in names
        return known and names.index(role) <= names.index(requested)


def load_policy(content: bytes) -> Policy:
    """Return the policy of a file's content. Raises PolicyError with every mistake it finds."""
    return _load(content, CHECKS)


def load_stored_policy(content: bytes) -> Policy:
    """Return a policy that a broker has used, also one that named endpoints more freely.

    Versions before the check of endpoints accepted any name, and wanted a role of ClickHouse for
    each. Such files are in the evidence of grants. Raises PolicyError.
    """
    return _load(content, STORED_CHECKS)


def _load(content: bytes, checks: Sequence[Callable[[PolicyFile], list[str]]]) -> Policy:
    if len(content) > MAX_POLICY_BYTES:
        raise PolicyError(f"the policy is too large: expected at most {MAX_POLICY_BYTES} bytes")
    try:
        file = msgspec.convert(_parse_yaml(content), PolicyFile, strict=False)
    except msgspec.ValidationError as error:
        raise PolicyError(f"{error}: {EXPECTED}") from None
    mistakes = [mistake for check in checks for mistake in check(file)]
    if mistakes:
        raise PolicyError("; ".join(mistakes))
    return Policy(file, sha256(content), content)


def judge_request(policy: Policy, request: AccessRequest, now_ms: int) -> str:
    """Return the name of the rule by which the policy refuses a request, or "". Pure.

    The vendor is sent this name, never the rule's value.
    """
    file, role = policy.file, policy.file.roles.get(request.role)
    if not file.enabled:
        return "disabled"
    if role is None:
        return "role"
    break_glass = request.reason.kind == "break_glass"
    longest = min(policy.max_seconds(role), MAX_BREAK_GLASS_SECONDS if break_glass else MAX_SECONDS)
    rules = {
        "break_glass": file.break_glass or not break_glass,
        "expired": now_ms < request.expires_ms,
        "duration": request.duration_seconds <= longest,
        "endpoints": set(request.endpoints) <= set(role.endpoints),
        "ticket": not file.ticket or _matches(file.ticket, request.reason.ticket),
    }
    return next((name for name, holds in rules.items() if not holds), "")


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """The approved role and duration, and everyone who agreed to them."""

    role: str
    duration_seconds: int
    vendor_keys: tuple[str, ...]  # ids of the keys that have signed the request
    approvers: tuple[str, ...]  # ids of the customer's keys, or the names of persons


def judge_approved(policy: Policy, request: AccessRequest, granted: Granted, now_ms: int) -> str:
    """Return the rule by which the policy of now forbids an approved grant, or "". Pure.

    The end of the request itself is not a rule here: it only decides until when access may open.
    """
    approved = msgspec.structs.replace(
        request, role=granted.role, duration_seconds=granted.duration_seconds
    )
    if rule := judge_request(policy, approved, min(now_ms, request.expires_ms - 1)):
        return rule
    pinned = {key.id for key in policy.vendor_keys}
    if len(pinned.intersection(granted.vendor_keys)) < policy.file.threshold:
        return "vendor_keys"
    counted = set(granted.approvers)
    if policy.file.approval == "signed":
        counted &= {key.id for key in policy.approver_keys}
    return "approvals" if len(counted) < policy.approvals_needed(approved) else ""


def judge_approval(policy: Policy, request: AccessRequest, approval: Approval) -> str:
    """Return why an approval cannot be used for this request, or "". Pure."""
    if approval.decision == "deny":
        return ""
    if approval.role is not None and not policy.is_lesser_role(approval.role, request.role):
        return "role"
    longer = (approval.duration_seconds or 0) > request.duration_seconds
    return "duration" if longer else ""


def find_wait(
    policy: Policy, request: AccessRequest, open_engineers: Sequence[str], wall_ms: int
) -> str:
    """Return why an approved grant cannot open yet, or "". Pure.

    `open_engineers` has one id per grant that is open or about to be.
    """
    if wall_ms < request.not_before_ms:
        return "not_before"
    if policy.file.hours is not None and not policy.file.hours.contain(wall_ms):
        return "hours"
    if len(open_engineers) >= policy.file.max_open:
        return "max_open"
    same = sum(one == request.engineer.id for one in open_engineers)
    return "max_open_per_engineer" if same >= policy.file.max_open_per_engineer else ""


def parse_duration(text: str) -> int:
    """Return the seconds of `30m`: a number with s, m, h or d. Raises ValueError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if not match or int(match[1]) == 0:
        raise ValueError(f"{text!r}: expected a duration such as 30m or 4h")
    return int(match[1]) * UNITS[match[2]]


def _parse_yaml(content: bytes) -> Any:
    import yaml  # noqa: PLC0415  1 MiB

    try:
        root = yaml.compose(content.decode(), Loader=yaml.BaseLoader)
        return _plain(root, yaml, set())
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise PolicyError(f"the policy is not YAML: {error.problem}{line}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise PolicyError(f"the policy is not YAML: {type(error).__name__}") from None


def _plain(node: Any, yaml: Any, seen: set[int]) -> Any:
    """Return dicts, lists and texts. Raises PolicyError for a repeated key and for an alias."""
    if node is None:
        return None
    if id(node) in seen:  # an alias: a small file could expand to a very large one
        raise PolicyError(f"line {node.start_mark.line + 1}: aliases are not supported")
    seen.add(id(node))
    if isinstance(node, yaml.ScalarNode):
        return node.value
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item, yaml, seen) for item in node.value]
    found: dict[str, Any] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in found:
            raise PolicyError(f"{name}: given twice, again in line {line}")
        found[name] = _plain(value, yaml, seen)
    return found


def _check_keys(file: PolicyFile) -> list[str]:
    mistakes = []
    for name, entries in (("vendor_keys", file.vendor_keys), ("approvers", file.approvers)):
        for entry in entries:
            try:
                entry.to_key()
            except ValueError as error:
                mistakes.append(f"{name}: {error}")
        for field in ("id", "ed25519"):
            values = [getattr(entry, field) for entry in entries]
            mistakes += [f"{name}: {v!r} is given twice" for v in _repeated(values)]
    if file.threshold > len(file.vendor_keys):
        mistakes.append(f"threshold: {file.threshold}: expected at most one per vendor key")
    return mistakes


def _check_approvers(file: PolicyFile) -> list[str]:
    needed = [file.approvals_needed, *(r.approvals_needed or 0 for r in file.roles.values())]
    if file.approval == "signed" and len(file.approvers) < max(needed):
        return [f"approvers: {len(file.approvers)} keys: expected at least {max(needed)}"]
    both = {e.ed25519 for e in file.approvers} & {e.ed25519 for e in file.vendor_keys}
    return ["approvers: a key of the vendor: expected keys of the customer"] if both else []


def _check_durations(file: PolicyFile) -> list[str]:
    limits: dict[str, tuple[str, int]] = {
        "max_duration": (file.max_duration, MAX_SECONDS),
        "pending_lapses_after": (file.pending_lapses_after, MAX_PENDING_SECONDS),
    }
    for name, role in file.roles.items():
        if role.max_duration is not None:
            limits[f"roles.{name}.max_duration"] = (role.max_duration, MAX_SECONDS)
    mistakes = []
    for name, (text, most) in limits.items():
        try:
            if parse_duration(text) > most:
                mistakes.append(f"{name}: {text!r}: expected at most {most} s")
        except ValueError as error:
            mistakes.append(f"{name}: {error}")
    return mistakes


def _check_roles(file: PolicyFile) -> list[str]:
    mistakes = []
    for name, role in file.roles.items():
        if role.pre_approved and role.approvals_needed is not None:
            mistakes.append(f"roles.{name}: expected either pre_approved or approvals_needed")
    return mistakes


def _check_endpoints(file: PolicyFile) -> list[str]:
    """Check the endpoints of each role, and that it has a role of ClickHouse if it needs one."""
    names = f"{', '.join(ENDPOINTS[:-1])} or {ENDPOINTS[-1]}"
    mistakes = []
    for name, role in file.roles.items():
        place, found = f"roles.{name}.endpoints", role.endpoints
        if not found:
            mistakes.append(f"{place}: empty: expected at least one of {names}")
            continue
        mistakes += [
            f"{place}: {one!r}: expected {names}"
            for one in dict.fromkeys(found)
            if one not in ENDPOINTS
        ]
        mistakes += [f"{place}: {one!r} is given twice" for one in _repeated(found)]
        if CLICKHOUSE in found and role.clickhouse_role is None:
            reason = "a role in ClickHouse, because the role has the endpoint `clickhouse`"
            mistakes.append(
                f"roles.{name}.clickhouse_role: missing: expected {reason} (the default), or"
                f" `endpoints` without it"
            )
        elif CLICKHOUSE not in found and role.clickhouse_role is not None:
            mistakes.append(
                f"roles.{name}.clickhouse_role: {role.clickhouse_role!r}: expected none, because"
                f" the role's endpoints do not include `clickhouse`"
            )
    return mistakes


def _check_ticket(file: PolicyFile) -> list[str]:
    try:
        _matches(file.ticket, "")
    except ValueError as error:
        return [f"ticket: {error}"]
    return []


STORED_CHECKS = (_check_keys, _check_approvers, _check_durations, _check_roles, _check_ticket)
CHECKS = (*STORED_CHECKS, _check_endpoints)


def _matches(pattern: str, text: str) -> bool:
    """Return whether the whole text matches, in linear time. Raises ValueError."""
    import re2  # noqa: PLC0415  as in the alerts' matchers: 3 MiB

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.fullmatch(pattern, text, options) is not None
    except re2.error:
        raise ValueError(f"{pattern!r}: expected a regular expression of RE2") from None


def _repeated(values: Sequence[str]) -> list[str]:
    return sorted({value for value in values if values.count(value) > 1})


def _zone(name: str) -> dt.tzinfo:
    if name == "UTC":  # needs no database
        return dt.UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        expected = "expected UTC, or a time zone that this machine knows"
        raise ValueError(f"zone: {name!r}: {expected}") from None


def _days(text: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise ValueError(f"days: {text!r}: expected days such as mon-fri or mon,wed")
        start, end = DAYS.index(first), DAYS.index(last or first)
        if start > end:
            raise ValueError(f"days: {text!r}: expected a range within mon to sun")
        found.update(range(start, end + 1))
    return frozenset(found)


def _minute(text: str) -> int:
    if not re.fullmatch(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]|24:00", text):
        raise ValueError(f"hours: {text!r}: expected a time such as 07:00")
    return int(text[:2]) * 60 + int(text[3:])
