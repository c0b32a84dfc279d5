"""The webhook's certificate: loaded at the start and again when its files change."""

import ssl
import time
from collections.abc import Callable

import structlog

from byoc_agents.app.files import (
    MAX_CERTIFICATES_BYTES,
    START_SECONDS,
    FileContent,
    NotReadableError,
    Version,
)

WAIT_SECONDS = 0.2  # for one file, and once: what takes longer is read in the background


class Certificate:
    """A TLS context whose certificate follows its files.

    The files are read in threads first, so that a mount that does not respond cannot stop the event
    loop. OpenSSL then loads what has just been read.
    """

    def __init__(
        self,
        cert_file: str,
        key_file: str,
        *,
        check_seconds: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the files. Raises OSError (ssl.SSLError is one) if they cannot be used.

        They are looked at again no more often than once in `check_seconds`.
        """
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._paths = (cert_file, key_file)
        self._check_seconds = check_seconds
        self._monotonic = monotonic
        self._checked_at = monotonic()
        self._versions: list[Version | None] = [None, None]
        self._readings: list[FileContent] = []  # that have not ended
        try:
            self._load(START_SECONDS)
        except NotReadableError as error:
            raise OSError(str(error)) from error

    def renew(self) -> None:
        """Use changed files from now on; keep the certificate if they cannot be used.

        Blocks for WAIT_SECONDS per file at most, and not again while a file does not respond.
        """
        now = self._monotonic()
        if now - self._checked_at < self._check_seconds:
            return
        self._checked_at = now
        late = bool(self._readings)
        try:
            self._load(0 if late else WAIT_SECONDS)
        except (OSError, NotReadableError) as error:
            if not (late and self._readings):  # one line for one wait
                why = str(error) if isinstance(error, NotReadableError) else type(error).__name__
                structlog.get_logger().error("webhook.tls_reload_failed", error=why)

    def _load(self, seconds: float) -> None:
        readings = self._readings or [
            FileContent(path, MAX_CERTIFICATES_BYTES, version)
            for path, version in zip(self._paths, self._versions, strict=True)
        ]
        ended = all(one.wait(seconds) for one in readings)
        self._readings = [] if ended else readings
        found = [one.result() for one in readings]
        if any(found):
            self.context.load_cert_chain(*self._paths)
            pairs = zip(found, self._versions, strict=True)
            self._versions = [new.version if new else old for new, old in pairs]
