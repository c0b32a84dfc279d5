"""Envelopes: the accepted and the refused ones, and a verifier that is not ours."""

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as StrangersEnvelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.exceptions import VerificationError as StrangersRefusal
from securesystemslib.signer import CryptoSigner, SSlibKey

from byoc_agents.access.documents import APPROVAL, REQUEST, WITHDRAWAL
from byoc_agents.envelope import MAX_PAYLOAD_BYTES, encode_for_signing, open_envelope, sign
from byoc_agents.errors import EnvelopeError
from tests.unit.access.access_documents import (
    STRANGER,
    VENDOR,
    VENDOR_HUMAN,
    pinned,
    public_bytes,
    request_envelope,
)

ONE = [pinned("vendor-1", VENDOR)]
TWO = [*ONE, pinned("vendor-approvers", VENDOR_HUMAN)]


def opened(raw: bytes, keys: Any = ONE, threshold: int = 1, now_ms: int = 0) -> Any:
    return open_envelope(raw, (REQUEST, WITHDRAWAL), keys, threshold=threshold, now_ms=now_ms)


def refusal(raw: bytes, **more: Any) -> str:
    with pytest.raises(EnvelopeError) as caught:
        opened(raw, **more)
    return str(caught.value)


def changed(raw: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(raw) | fields).encode()


def test_the_encoding_for_signing_is_that_of_the_specification() -> None:
    # The example of the DSSE protocol document, version 1.0.0.
    assert encode_for_signing("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_signed_payload_is_returned_with_the_ids_of_the_pinned_keys() -> None:
    found = opened(sign(REQUEST, b"{}", [("any hint", VENDOR)]))
    assert found == (b"{}", REQUEST, ("vendor-1",))


def test_two_keys_must_sign_when_the_threshold_is_two() -> None:
    both = sign(REQUEST, b"{}", [("", VENDOR), ("", VENDOR_HUMAN)])
    assert opened(both, TWO, threshold=2).key_ids == ("vendor-1", "vendor-approvers")
    only_one = sign(REQUEST, b"{}", [("", VENDOR), ("", STRANGER)])
    expected = "too_few_signatures: 1 of the pinned keys have signed it, expected 2"
    assert refusal(only_one, keys=TWO, threshold=2) == expected


def test_one_key_counts_once_however_often_it_signs_or_is_pinned() -> None:
    twice = sign(REQUEST, b"{}", [("a", VENDOR), ("b", VENDOR)])
    pinned_twice = [*ONE, pinned("the same key", VENDOR)]
    assert "1 of the pinned keys" in refusal(twice, keys=pinned_twice, threshold=2)


def test_an_expired_key_does_not_count_from_its_end_on() -> None:
    keys, raw = (
        [pinned("vendor-1", VENDOR, not_after_ms=1000)],
        sign(REQUEST, b"{}", [("", VENDOR)]),
    )
    assert opened(raw, keys, now_ms=999).payload == b"{}"
    assert refusal(raw, keys=keys, now_ms=1000).endswith("expected 1; expired: vendor-1")


def test_a_key_that_is_not_pinned_does_not_count() -> None:
    raw = sign(REQUEST, b"{}", [("vendor-1", STRANGER)])
    assert refusal(raw) == "too_few_signatures: 0 of the pinned keys have signed it, expected 1"


def test_the_type_is_part_of_what_is_signed() -> None:
    raw = changed(sign(REQUEST, b"{}", [("", VENDOR)]), payloadType=WITHDRAWAL)
    assert refusal(raw).startswith("too_few_signatures")


def test_another_type_is_refused_although_it_is_signed() -> None:
    raw = sign(APPROVAL, b"{}", [("", VENDOR)])
    assert refusal(raw) == f"wrong_type: expected {REQUEST} or {WITHDRAWAL}"


@given(st.data())
def test_a_changed_byte_of_the_payload_or_the_signature_is_refused(data: st.DataObject) -> None:
    raw = request_envelope()
    content = json.loads(raw)
    part = data.draw(st.sampled_from(["payload", "sig"]))
    text = content["payload"] if part == "payload" else content["signatures"][0]["sig"]
    binary = bytearray(base64.b64decode(text))
    place = data.draw(st.integers(0, len(binary) - 1))
    binary[place] ^= 1 << data.draw(st.integers(0, 7))
    new = base64.b64encode(binary).decode()
    if part == "payload":
        content["payload"] = new
    else:
        content["signatures"][0]["sig"] = new
    assert refusal(json.dumps(content).encode()).startswith("too_few_signatures")


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_refused_with_a_reason(raw: bytes) -> None:
    assert refusal(raw) == "not_an_envelope: expected a DSSE envelope in JSON"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"payload": "not base64!"}, "not_an_envelope: the payload is not base64"),
        ({"payload": 3}, "not_an_envelope: expected a DSSE envelope in JSON"),
        ({"signatures": []}, "not_an_envelope: expected a DSSE envelope in JSON"),
        ({"signatures": [{"sig": "%"}]}, "not_an_envelope: a signature is not base64"),
        ({"signatures": [{"sig": "AAAA"}]}, "too_few_signatures: 0 of the pinned keys have signed"),
        ({"signatures": [{"sig": ""}] * 9}, "not_an_envelope: expected a DSSE envelope in JSON"),
        ({"more": 1}, "not_an_envelope: expected a DSSE envelope in JSON"),
    ],
)
def test_a_malformed_envelope_is_refused(fields: dict[str, Any], reason: str) -> None:
    assert refusal(changed(sign(REQUEST, b"{}", [("", VENDOR)]), **fields)).startswith(reason)


def test_an_envelope_that_is_too_large_is_not_parsed() -> None:
    assert refusal(b"[" * 70_000) == "too_large: expected at most 65536 bytes"
    raw = sign(REQUEST, b" " * (MAX_PAYLOAD_BYTES + 1), [("", VENDOR)])
    assert refusal(raw) == "too_large: expected a payload of at most 32768 bytes"


def test_url_safe_base64_is_accepted_as_the_specification_demands() -> None:
    raw = json.loads(sign(REQUEST, b"\xff\xfe\xfd?>", [("", VENDOR)]))
    for one in (raw, raw["signatures"][0]):
        for field in one.keys() & {"payload", "sig"}:
            one[field] = one[field].replace("+", "-").replace("/", "_")
    assert opened(json.dumps(raw).encode()).payload == b"\xff\xfe\xfd?>"


# securesystemslib is the reference implementation of DSSE in Python.


def strangers_key() -> SSlibKey:
    public = public_bytes(VENDOR).hex()
    return SSlibKey("vendor-1", "ed25519", "ed25519", {"public": public})


def test_securesystemslib_accepts_our_envelope_and_refuses_a_changed_one() -> None:
    raw = json.loads(request_envelope())
    accepted = StrangersEnvelope.from_dict(json.loads(request_envelope()))
    assert list(accepted.verify([strangers_key()], 1)) == ["vendor-1"]
    payload = base64.b64decode(raw["payload"]).replace(b"system-reader", b"system-writer")
    raw["payload"] = base64.b64encode(payload).decode()
    with pytest.raises((StrangersRefusal, UnverifiedSignatureError)):
        StrangersEnvelope.from_dict(raw).verify([strangers_key()], 1)


def test_an_envelope_that_securesystemslib_has_signed_is_accepted() -> None:
    envelope = StrangersEnvelope(b'{"id":1}', REQUEST, {})
    envelope.sign(CryptoSigner(VENDOR, strangers_key()))
    raw = json.dumps(envelope.to_dict()).encode()
    assert opened(raw) == (b'{"id":1}', REQUEST, ("vendor-1",))


TWICE = {
    "payload": '"e30="',
    "payloadType": '"application/x"',
    "signatures": '[{"sig":"AA=="}]',
    "sig": '"AA=="',
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("field", TWICE)
def test_a_field_of_the_envelope_that_is_given_twice_is_refused(field: str, place: str) -> None:
    """Of two equal keys some readers take the first one, and others the last one."""
    raw = sign(REQUEST, b'{"a":1}', [("", VENDOR)]).decode()
    other = f'"{field}":{TWICE[field]}'
    at = raw.index(f'"{field}":')
    end = raw.index("}", at) if field == "sig" else len(raw) - 1
    twice = (
        f"{raw[:at]}{other},{raw[at:]}" if place == "before" else f"{raw[:end]},{other}{raw[end:]}"
    )
    assert json.loads(twice)
    assert refusal(twice.encode()) == "not_an_envelope: a field is given twice"
