"""What the vendor is sent about a grant: fixed words only."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from byoc_agents.access.events import OTHER, REASONS, find_reason, message_of
from byoc_agents.access.machine import Cause, State
from tests.unit.access.access_documents import grant_of


def sent(state: State, **changes: Any) -> dict[str, Any]:
    message = message_of(grant_of(state, **changes), "org-1", "svc-1", {"queries": 1})
    data: dict[str, Any] = msgspec.json.decode(message.body)["data"]
    return data


@given(st.text(max_size=80), st.sampled_from(State))
def test_no_text_but_a_fixed_word_is_sent_as_a_reason(text: str, state: State) -> None:
    assert sent(state, reason=text)["reason"] in REASONS | {OTHER}


@given(st.sampled_from(sorted(REASONS)), st.sampled_from([": ", "; ", " ("]), st.text(max_size=80))
def test_the_text_after_a_fixed_word_is_not_sent(word: str, mark: str, text: str) -> None:
    assert find_reason(f"{word}{mark}{text}") == word


@pytest.mark.parametrize(
    "text", ["No space left on device (ledger)", "disk of r0 is full", "", "anna"]
)
def test_a_text_that_begins_with_no_fixed_word_is_other(text: str) -> None:
    assert sent(State.LAPSED, reason=text)["reason"] == OTHER


@pytest.mark.parametrize("cause", Cause)
def test_every_cause_is_a_word_that_is_sent(cause: Cause) -> None:
    assert find_reason(cause.value) == cause.value


def test_an_event_has_no_name_of_an_approver_and_no_policy() -> None:
    grant = grant_of(State.CLOSED, reason="revoked: because (by anna)")
    assert b"anna" not in message_of(grant, "org-1", "svc-1", {}).body
    assert b"sec-1" not in message_of(grant, "org-1", "svc-1", {}).body
