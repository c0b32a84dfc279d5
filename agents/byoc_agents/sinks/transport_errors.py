"""Failures below an answer that every sink shares: the proxy's, and those of TLS."""

import re
import ssl

import aiohttp

from byoc_agents.errors import Reason, SendError


def proxy_error(error: aiohttp.ClientHttpProxyError) -> SendError:
    """Return the error of a proxy that did not open the tunnel. 407 and 403 are held."""
    reason = {407: Reason.CREDENTIALS, 403: Reason.FORBIDDEN}.get(error.status, Reason.CONNECTION)
    return SendError(reason, f"the proxy answered {error.status}")


def unreadable_answer(error: aiohttp.ClientResponseError) -> SendError:
    """Return the error of an answer that is not HTTP, with the parser's own reason."""
    text = "".join(c if c.isascii() and c.isprintable() else " " for c in error.message)
    return SendError(Reason.BAD_RESPONSE, f"unreadable answer: {text[:200].strip()}")


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
