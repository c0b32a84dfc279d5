"""The webhook over real sockets: authentication, status codes and answers."""

import asyncio
from pathlib import Path

import pytest
import structlog

from byoc_agents.alerts.budget import BudgetSpentError
from byoc_agents.alerts.payload import NotAWebhookError
from byoc_agents.app.reloadable_secret import ReloadableSecret
from byoc_agents.errors import SpoolFullError, SpoolUnavailableError
from tests.unit.alerts.webhook_harness import BEARER, BODY, Make


async def test_a_notification_is_answered_after_it_is_stored(make: Make) -> None:
    async with make() as harness:
        harness.relay.may_commit.clear()
        asked = asyncio.create_task(harness.post())
        done, _ = await asyncio.wait([asked], timeout=0.05)
        assert not done
        harness.relay.may_commit.set()
        status, text, response = await asked
    assert (status, text) == (200, '{"status": "stored"}')
    assert response.headers["Server"] == "byoc-agents"
    assert harness.relay.bodies == [BODY]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SpoolFullError("12 bytes are over 10"), 503),
        (SpoolUnavailableError("/secret/path: read-only"), 503),
        (BudgetSpentError("the bytes of the day are used up"), 503),
        (NotAWebhookError("x"), 400),
    ],
)
async def test_the_status_of_a_storage_error_makes_alertmanager_retry(
    make: Make, error: Exception, status: int
) -> None:
    async with make() as harness:
        harness.relay.error = error
        got, text, _ = await harness.post()
        assert got == status
        assert str(error) not in text
        requests = {"daemon": "a", "code": str(status)}
        assert harness.registry.get_sample_value("byoc_webhook_requests_total", requests) == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b"<html>"])
async def test_a_malformed_body_is_400(make: Make, body: bytes) -> None:
    async with make() as harness:
        assert (await harness.post(body))[0] == 400


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ("Bearer right", 200),
        ("bearer right", 200),
        ("Bearer  right ", 200),
        ("Bearer new", 200),
        ("Bearer wrong", 401),
        ("Bearer right new", 401),
        ("Bearer righ", 401),
        ("Bearer ", 401),
        ("Basic right", 401),
        ("right", 401),
        ("", 401),
        ("Bearer r\u00efght", 401),
    ],
)
async def test_a_bearer_token_is_required(make: Make, header: str, status: int) -> None:
    async with make(ReloadableSecret("right\nnew\n")) as harness:
        got, text, response = await harness.post(Authorization=header)
        assert got == status
        assert "right" not in text
        assert ("WWW-Authenticate" in response.headers) == (status == 401)
        assert len(harness.relay.bodies) == (status == 200)


async def test_an_unauthenticated_request_is_refused_before_its_body_is_read(make: Make) -> None:
    async with make(ReloadableSecret("right")) as harness:
        reader, writer = await asyncio.open_connection("127.0.0.1", harness.port)
        writer.write(b"POST /v1/alerts HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
        writer.close()


async def test_a_rotated_token_is_used_at_once_and_an_empty_file_is_ignored(
    make: Make, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    async with make(ReloadableSecret("first", str(file))) as harness:
        file.write_text("second\n")
        assert (await harness.post(Authorization="Bearer first"))[0] == 401
        assert (await harness.post(Authorization="Bearer second"))[0] == 200
        with structlog.testing.capture_logs() as logs:
            file.write_text("")
            assert (await harness.post(Authorization="Bearer second"))[0] == 200
            file.unlink()
            assert (await harness.post(Authorization="Bearer second"))[0] == 200
    assert [(line["event"], line["reason"]) for line in logs[:1]] == [
        ("secret.reload_failed", "empty")
    ]
    assert "second" not in repr(logs)


async def test_a_sender_that_waits_for_100_continue_is_answered(make: Make) -> None:
    async with (
        make() as harness,
        harness.session.post(
            harness.url, data=BODY, headers={"Authorization": BEARER}, expect100=True
        ) as response,
    ):
        assert response.status == 200
        assert harness.relay.bodies == [BODY]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/alerts", 405), ("POST", "/", 404), ("POST", "/v1/alerts/", 404)],
)
async def test_no_other_path_is_served_and_no_version_is_shown(
    make: Make, method: str, path: str, status: int
) -> None:
    async with make() as harness:
        url = f"http://127.0.0.1:{harness.port}{path}"
        async with harness.session.request(method, url, data=BODY) as response:
            assert response.status == status
            assert response.headers["Server"] == "byoc-agents"
            assert response.headers.get("Allow") == ("POST" if status == 405 else None)
        assert harness.relay.bodies == []


async def test_an_internal_error_shows_no_version(make: Make) -> None:
    async with make() as harness:
        harness.relay.error = RuntimeError("a defect")
        status, text, response = await harness.post()
    assert (status, response.headers["Server"]) == (500, "byoc-agents")
    assert "a defect" not in text
