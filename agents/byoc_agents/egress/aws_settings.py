"""AWS's variables and files: what the daemons honor, and a mistake for everything else.

The destinations table is made before botocore runs. A setting of AWS that changes an endpoint or
the identity must therefore be one that the table knows: the variables below. The same setting in
AWS's files is named as a mistake with the variable to use, since botocore would follow it to a host
that the gate refuses, or would not follow it at all.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from byoc_agents.app.files import MAX_CONFIG_BYTES, read_within

# Variables whose values become part of a header or of a request: white space is always a mistake.
EXACT_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ROLE_ARN",
    "AWS_ROLE_SESSION_NAME",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
    "AWS_PROFILE",
)
# These are the names of files and profiles, which may have any letter. AWS issues all others in
# ASCII, and a header or a signature cannot hold more.
NAMES = frozenset(
    {"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "AWS_PROFILE"}
)
KEY_NAMES = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
IRSA = ("AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

WEB_IDENTITY = "AWS_ROLE_ARN and AWS_WEB_IDENTITY_TOKEN_FILE"
STATIC = "access keys, IRSA or EKS Pod Identity"
# Keys of a profile that choose an identity -> what to use instead.
IDENTITY: Mapping[str, str] = {
    "role_arn": WEB_IDENTITY,
    "web_identity_token_file": WEB_IDENTITY,
    "source_profile": STATIC,
    "credential_source": STATIC,
    "credential_process": STATIC,
    "sso_session": STATIC,
    "sso_start_url": STATIC,
    "sso_account_id": STATIC,
    "sso_role_name": STATIC,
    "login_session": STATIC,
}
TRUE = "true"  # as botocore reads a boolean: nothing else is one


class Profile(NamedTuple):
    """The chosen profile: its settings from both files, with the file that each comes from."""

    values: Mapping[str, tuple[str, str]]  # key -> (value, AWS_CONFIG_FILE or the other variable)

    def get(self, key: str) -> str:
        """Return a value, or "" if the profile does not have it."""
        return self.values.get(key, ("", ""))[0]

    def source(self, key: str) -> str:
        """Return where a value comes from, for messages."""
        return f"{self.values[key][1]}, {key}"

    def nested(self, key: str) -> dict[str, str]:
        """Return the indented `name = value` lines below a key."""
        lines = (line.partition("=") for line in self.get(key).splitlines())
        return {name.strip(): value.strip() for name, sign, value in lines if sign}


def aws_mistakes(
    environ: Mapping[str, str], services: Sequence[str], given: Iterable[str] = ()
) -> list[str]:
    """Return a mistake for each setting of AWS that the daemons cannot honor.

    `services` are the AWS services that the daemon calls, and `given` those of them whose endpoint
    a variable names. The messages repeat no value.
    """
    wrong = [*_unusable_variables(environ), *_half_identities(environ)]
    if not services:
        return wrong
    profile, unreadable = read_profile(environ)
    if unreadable:
        return wrong + unreadable
    elsewhere = [service for service in services if service not in set(given)]
    wrong += _endpoint_mistakes(environ, profile, elsewhere)
    if "s3" in elsewhere:
        wrong += _s3_mistakes(environ, profile)
    return [*wrong, *_identity_mistakes(environ, profile)]


def irsa(environ: Mapping[str, str]) -> bool:
    """Return whether a role and a token file are set."""
    return all(environ.get(name) for name in IRSA)


def static_keys(environ: Mapping[str, str]) -> bool:
    """Return whether access keys are set, which botocore prefers to everything else."""
    return all(environ.get(name) for name in KEYS)


def _unusable_variables(environ: Mapping[str, str]) -> Iterator[str]:
    for name in EXACT_VARIABLES:
        text = environ.get(name, "")
        if found := re.search(r"[\s\x00-\x1f\x7f]", text):
            yield (
                f"{name}: holds {_character(found[0])} at character {found.start() + 1}:"
                " expected no white space; `printf %s` writes no newline"
            )
        elif name not in NAMES and not text.isascii():
            yield f"{name}: holds a character that is not ASCII: expected the value as AWS shows it"


def _character(found: str) -> str:
    return {"\n": "a newline", "\r": "a carriage return", " ": "a space", "\t": "a tab"}.get(
        found, f"U+{ord(found):04X}"
    )


def _half_identities(environ: Mapping[str, str]) -> Iterator[str]:
    for names in (KEYS, IRSA):
        found = [name for name in names if environ.get(name)]
        if len(found) == 1:
            missing = next(name for name in names if name not in found)
            yield f"{found[0]}: is set without {missing}: expected both"


def _endpoint_mistakes(
    environ: Mapping[str, str], profile: Profile, services: Sequence[str]
) -> Iterator[str]:
    for service in services:
        for variable, key, example in (
            ("AWS_USE_FIPS_ENDPOINT", "use_fips_endpoint", f"{service}-fips.REGION.amazonaws.com"),
            ("AWS_USE_DUALSTACK_ENDPOINT", "use_dualstack_endpoint", _dual_stack(service)),
        ):
            text = environ.get(variable, profile.get(key))
            if text.strip().lower() == TRUE:
                source = variable if variable in environ else profile.source(key)
                yield (
                    f"{source}: is not supported for {service}: expected it unset and"
                    f" AWS_ENDPOINT_URL_{service.upper()}=https://{example}"
                )
        if environ.get("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "").lower() == TRUE:
            continue  # as botocore reads it, also for the files
        for key in ("endpoint_url", "services"):
            if profile.get(key):
                yield (
                    f"{profile.source(key)}: is not supported for {service}:"
                    f" expected AWS_ENDPOINT_URL_{service.upper()}"
                )
    if profile.get("ignore_configured_endpoint_urls").lower() == TRUE:
        source = profile.source("ignore_configured_endpoint_urls")
        yield f"{source}: is not supported: expected AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"
    legacy = profile.get("sts_regional_endpoints").lower()
    if legacy and legacy != environ.get("AWS_STS_REGIONAL_ENDPOINTS", "regional").lower():
        source = profile.source("sts_regional_endpoints")
        yield f"{source}: is not supported: expected AWS_STS_REGIONAL_ENDPOINTS"


def _dual_stack(service: str) -> str:
    return "s3.dualstack.REGION.amazonaws.com" if service == "s3" else f"{service}.REGION.api.aws"


def _s3_mistakes(environ: Mapping[str, str], profile: Profile) -> Iterator[str]:
    """Return a mistake for each option below `s3 =` that changes the host of the bucket."""
    options = profile.nested("s3")
    source = profile.values.get("s3", ("", "AWS_CONFIG_FILE"))[1]
    if options.get("addressing_style", "auto") != "auto":
        yield (
            f"{source}, s3 addressing_style: is not supported: expected it unset;"
            " an endpoint is addressed by path, and a bucket of AWS by its own host"
        )
    for option, instead in (
        ("use_accelerate_endpoint", "it unset, since no gateway endpoint serves it"),
        ("use_dualstack_endpoint", f"it unset and AWS_ENDPOINT_URL_S3=https://{_dual_stack('s3')}"),
    ):
        if options.get(option, "").lower() == TRUE:
            yield f"{source}, s3 {option}: is not supported: expected {instead}"
    variable = "AWS_S3_US_EAST_1_REGIONAL_ENDPOINT"
    option = "us_east_1_regional_endpoint"
    file = options.get(option) or profile.get(f"s3_{option}")
    if environ.get(variable, file).lower() == "legacy":
        name = variable if variable in environ else f"{source}, s3 {option}"
        yield f"{name}: `legacy` is not supported: expected regional"


def _identity_mistakes(environ: Mapping[str, str], profile: Profile) -> Iterator[str]:
    """Return a mistake for each identity of the profile that would be used, but cannot be."""
    if static_keys(environ) or irsa(environ):
        return
    for key, instead in IDENTITY.items():
        if profile.get(key):
            yield f"{profile.source(key)}: is not supported: expected {instead}"
    for key in KEY_NAMES:
        if found := re.search(r"[^\x21-\x7e]", profile.get(key)):
            kind = "white space" if found[0].isspace() else "a character that is not ASCII"
            yield f"{profile.source(key)}: holds {kind}: expected the value as AWS shows it"


def profile_name(environ: Mapping[str, str]) -> str:
    """Return the name of the profile, with the variables in botocore's order."""
    return environ.get("AWS_DEFAULT_PROFILE") or environ.get("AWS_PROFILE") or "default"


def profile_files(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (variable, path) of the configuration file and of the credentials file."""
    home = environ.get("HOME", "")
    return [
        (variable, environ.get(variable) or (f"{home}/.aws/{name}" if home else ""))
        for variable, name in (
            ("AWS_CONFIG_FILE", "config"),
            ("AWS_SHARED_CREDENTIALS_FILE", "credentials"),
        )
    ]


def identity_files(environ: Mapping[str, str]) -> list[str]:
    """Return the paths of the files of keys and tokens that AWS's variables name, or its defaults.

    They need not exist.
    """
    variables = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    named = [path for _, path in profile_files(environ)]
    named += [environ.get(name, "") for name in variables]
    return [os.path.expanduser(path) for path in named if path]  # noqa: PTH111  Path may raise


def read_profile(environ: Mapping[str, str]) -> tuple[Profile, list[str]]:
    """Return the chosen profile of AWS's files, and the mistakes of files that cannot be read.

    As for botocore, a missing file is empty, and the credentials file wins.
    """
    wanted, values = profile_name(environ), dict[str, tuple[str, str]]()
    known, wrong = wanted == "default", []
    for variable, path in profile_files(environ):
        if path in {"", os.devnull}:
            continue
        try:
            sections = read_sections(read_within(str(Path(path).expanduser()), MAX_CONFIG_BYTES))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: no home directory
            wrong.append(f"{variable}: {error}")
            continue
        prefix = "profile " if variable == "AWS_CONFIG_FILE" and wanted != "default" else ""
        for name in (f"{prefix}{wanted}", f'{prefix}"{wanted}"'):
            if name in sections:
                known = True
                values |= {key: (value, variable) for key, value in sections[name].items()}
    if not known and not wrong:
        name = "AWS_DEFAULT_PROFILE" if environ.get("AWS_DEFAULT_PROFILE") else "AWS_PROFILE"
        wrong.append(f"{name}: {wanted!r} is not a profile: expected a profile of AWS's files")
    return Profile(values), wrong


def read_sections(content: bytes) -> dict[str, dict[str, str]]:
    """Return section -> key -> value of an AWS file. Raises ValueError."""
    import configparser  # noqa: PLC0415  0.2 MiB, which a daemon without AWS does not need

    parser = configparser.RawConfigParser(default_section="")
    try:
        parser.read_string(content.decode())
    except configparser.Error as error:
        line = getattr(error, "lineno", None) or next(
            (number for number, _ in getattr(error, "errors", [])), "?"
        )
        raise ValueError(f"line {line} cannot be parsed: expected `key = value`") from None
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8: expected a text file") from None
    return {name: dict(parser.items(name)) for name in parser.sections()}
