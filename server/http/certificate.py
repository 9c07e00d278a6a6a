"""The certificate of a server that speaks TLS, and its renewal while the server runs."""

import asyncio
import logging
import os
import ssl

_LOOK_SECONDS = 1.0  # between two looks at the files: two system calls each
_log = logging.getLogger("headrace.http")


class CertificateError(Exception):
    """It cannot be used: a sentence that names the files and the cause."""


class ServerCertificate:
    """A certificate and its key, as their files have them.

    A handshake takes the newest ones that belong together. Connections that are open keep theirs: nothing is dropped.

    Args:
        chain: a PEM file with the certificate, and behind it those that lead to the root.
        key: a PEM file with the private key; None if it is in `chain`.

    Attributes:
        context: for all handshakes.

    Raises:
        CertificateError: a file cannot be read, or they do not belong together.
    """

    def __init__(self, chain: str, key: str | None = None) -> None:
        self._chain, self._key = chain, key
        self._seen = self._refused = self._state()
        self._newest = self.context = self._load()
        self.context.sni_callback = self._choose

    async def watch(self) -> None:
        """Take up what the files hold, soon after they change. Until it is cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Look at the files once. Where they cannot be used the old ones stay in use, with a line in the log."""
        state = self._state()
        if state == self._seen:
            return
        try:
            self._newest = self._load()
        except CertificateError as error:
            if state != self._refused:
                _log.error("%s The certificate read before stays in use.", error)
            self._refused = state
        else:
            self._seen = state
            _log.info("the certificate in %s has changed and is in use from now on", self._chain)

    def _choose(self, handshake: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """OpenSSL asks in every handshake, whether the client names a server or not."""
        handshake.context = self._newest

    def _state(self) -> list[tuple[int, int, int] | None]:
        """What changes when a file does, also where links to folders are swapped as Kubernetes does it."""
        return [_state(path) for path in (self._chain, self._key) if path is not None]

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        files = self._chain if self._key is None else f"{self._chain} and {self._key}"
        for path in (self._chain, self._key):
            if path is not None and os.path.exists(path) and not os.path.isfile(path):
                # who opens a pipe waits for its writer: here, all clients
                raise CertificateError(f"{files} cannot be used for TLS: {path} is no regular file.")
        try:
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except CertificateError as error:
            raise CertificateError(f"{files} cannot be used for TLS: {error}") from None
        except (OSError, ValueError) as error:  # SSLError is an OSError, whose strerror is a place in OpenSSL's source
            said = getattr(error, "reason" if isinstance(error, ssl.SSLError) else "strerror", None)
            reason = said or "no certificate and key in PEM"
            raise CertificateError(f"{files} cannot be used for TLS: {reason}.") from None
        return context


def _no_password() -> str:
    """OpenSSL would ask on the terminal."""
    raise CertificateError("the key is encrypted; give one without a password.")


def _state(path: str) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
