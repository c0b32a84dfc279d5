"""HTTP for every client: failures below a response, its body, and times in its headers."""

import email.utils
import re
import ssl

import aiohttp

from byoc_agents.errors import Reason, SendError

SKEW_SECONDS = 300  # the Standard Webhooks specification: a receiver refuses a larger difference


async def read_body(response: aiohttp.ClientResponse, max_bytes: int) -> bytes | None:
    """Return the body, or None if it has more than `max_bytes`; the connection is then closed.

    Raises aiohttp.ClientError, TimeoutError and OSError.
    """
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > max_bytes:
            response.close()
            return None
    return bytes(body)


def proxy_error(error: aiohttp.ClientHttpProxyError) -> SendError:
    """Return the error of a proxy that did not open the tunnel. 407 and 403 are held."""
    reason = {407: Reason.CREDENTIALS, 403: Reason.FORBIDDEN}.get(error.status, Reason.CONNECTION)
    return SendError(reason, f"the proxy answered {error.status}")


def unreadable_response(error: aiohttp.ClientResponseError) -> SendError:
    """Return the error of a response that is not HTTP, with the parser's own reason."""
    text = "".join(c if c.isascii() and c.isprintable() else " " for c in error.message)
    return SendError(Reason.BAD_RESPONSE, f"unreadable response: {text[:200].strip()}")


def tls_error(error: BaseException) -> SendError:
    """Return the error of a failed handshake, with OpenSSL's reason, which holds no secret.

    A certificate that is not accepted is held; any other failure of the handshake is retried.
    """
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    message = getattr(cause, "verify_message", "") or getattr(cause, "reason", "")
    certificate = isinstance(cause, ssl.SSLCertVerificationError | ssl.CertificateError)
    reason = Reason.TLS if certificate else Reason.CONNECTION
    return SendError(reason, f"TLS: {_sentence(message or type(cause).__name__)}")


def _sentence(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9 ,.:'_-]", "?", text)[:200]


def retry_after_seconds(header: str, wall_ns: int, date: str = "") -> float | None:
    """Return the seconds to wait for `120` or an HTTP date; None if the value is unusable.

    A date counts from the response's own `Date` header if it has one, else from `wall_ns`.
    """
    text = header.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    moment = http_date_seconds(text)
    if moment is None:
        return None
    now = http_date_seconds(date.strip())
    return max(0.0, moment - (wall_ns / 1e9 if now is None else now))


def http_date_seconds(text: str) -> float | None:
    """Return seconds since 1970 of an HTTP date; None if it is not one."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def skew_seconds(date: str, wall_ns: int) -> int:
    """Return by how many seconds our clock is ahead of a `Date` header; 0 within the tolerance."""
    theirs = http_date_seconds(date.strip())
    skew = 0 if theirs is None else round(wall_ns / 1e9 - theirs)
    return skew if abs(skew) > SKEW_SECONDS else 0


def skew_hint(date: str, wall_ns: int) -> str:
    """Return a clause that compares both clocks; "" within the tolerance or without a date."""
    skew = skew_seconds(date, wall_ns)
    if not skew:
        return ""
    return f"our clock is {abs(skew)} s {'ahead of' if skew > 0 else 'behind'} the receiver's"
