"""Keyed forms of the uid of a pod and of the boot id of a node."""

import hashlib
import hmac
import uuid

import pytest

from byoc_agents.app.clock import SystemClock
from byoc_agents.app.keyed_ids import keyed_id

POD = "6f0a2c1e-7d1b-4f4c-9d0e-2b7c5a1f3e90"
SENT = "3a44ae1e-66f9-8a14-823f-648873640a95"


def test_a_keyed_id_is_the_hmac_that_the_contract_describes() -> None:
    """All digits but those of the version and the variant are those of the digest."""
    digest = hmac.new(POD.encode(), b"pod\norg-1\nsvc-1", hashlib.sha256).hexdigest()[:32]
    sent = keyed_id(POD, "pod", "org-1", "svc-1")
    digits = sent.replace("-", "")
    assert sent == SENT
    assert [n for n in range(32) if digits[n] != digest[n]] == [12, 16]


def test_a_keyed_id_is_a_uuid_of_version_8() -> None:
    parsed = uuid.UUID(SENT)
    assert parsed.version == 8
    assert parsed.variant == uuid.RFC_4122


@pytest.mark.parametrize(
    ("original", "scope"),
    [
        (POD, ("pod", "org-1", "svc-2")),
        (POD, ("boot", "org-1", "svc-1")),
        (POD.replace("6", "7"), ("pod", "org-1", "svc-1")),
    ],
)
def test_another_id_or_scope_gives_another_form(original: str, scope: tuple[str, ...]) -> None:
    assert keyed_id(original, *scope) != SENT


def test_an_unknown_id_stays_empty() -> None:
    assert keyed_id("", "pod", "org-1", "svc-1") == ""


def test_the_clocks_of_two_replicas_on_a_node_do_not_show_that_it_is_one() -> None:
    first, second = SystemClock("org", "svc", "r-0"), SystemClock("org", "svc", "r-1")
    assert first.boot_id[:8] != second.boot_id[:8]
    assert SystemClock("org", "svc", "r-0").boot_id == first.boot_id
