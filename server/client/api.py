"""One server's HTTP API, for commands that speak to a person: what goes wrong becomes a sentence."""

import argparse
import re
import ssl
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import msgspec

from server.client.answers import ToldEvent, ToldModels

URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 5.0
_KEYS = ("HEADRACE_API_KEY", "OPENAI_API_KEY")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
Told = TypeVar("Told")


def printable(text: str) -> str:
    """What a server said, without what a terminal would take for commands; \\t and \\n it may have."""
    return _UNPRINTABLE.sub("\ufffd", text)


class AskError(Exception):
    """The server was not reached, or refused: a sentence. `status`: of its answer, if there was one."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(printable(text))
        self.status = status


class Api:
    """A server.

    Args:
        url: with or without `/v1` at its end; `http://` may be left out.
        key: sent as a bearer token.
        uds: a Unix socket on which it listens.
        ca_file: PEM certificates that are trusted instead of the system's.
        seconds: how long it may take to say something; None: for ever.

    Raises:
        AskError: the URL or a file cannot be used.
    """

    def __init__(
        self,
        url: str = URL,
        *,
        key: str | None = None,
        uds: str | None = None,
        ca_file: str | None = None,
        seconds: float | None = None,
    ) -> None:
        if uds == "":
            raise AskError("--uds is empty: give the path of a Unix socket, or leave --uds out.")
        url = url if "://" in url else f"http://{url}"
        self.url = url.rstrip("/").removesuffix("/v1")
        self._place = self.url if uds is None else f"the Unix socket {uds}"
        try:
            verify: ssl.SSLContext | bool = True if ca_file is None else ssl.create_default_context(cafile=ca_file)
            self._client = httpx.Client(
                base_url=self.url,
                transport=None if uds is None else httpx.HTTPTransport(uds=uds, verify=verify),
                verify=verify,
                headers={} if key is None else {"Authorization": f"Bearer {key}"},
                timeout=httpx.Timeout(seconds, connect=_CONNECT_SECONDS),
            )
        except (OSError, ValueError, httpx.InvalidURL) as error:
            raise AskError(f"{ca_file or url} cannot be used: {error}.") from None

    def close(self) -> None:
        """Close its connections."""
        self._client.close()

    def models(self) -> list[str]:
        """Names of the models that it serves.

        Raises:
            AskError: as `request`; also where it is no such server.
        """
        try:
            return [each.id for each in self.read("/v1/models", ToldModels).data]
        except TypeError:
            raise AskError(f"What answers at {self._place} is no OpenAI-compatible server.") from None

    def read(self, path: str, kind: type[Told], body: Mapping[str, Any] | None = None) -> Told:
        """What is at a path, or answered to a body that is posted there.

        Raises:
            AskError: as `request`.
            TypeError: the answer is of another kind.
        """
        content = self.request("GET" if body is None else "POST", path, body).content
        return _decoded(content, kind)

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """An answer that is no refusal.

        Raises:
            AskError: there is none.
        """
        with self._told():
            response = self._client.request(method, path, json=body)
        _refuse_errors(response)
        return response

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[ToldEvent, None, None]:
        """The events of a stream. To close the iterator is to leave.

        Raises:
            AskError: it is refused, or breaks.
        """
        with self._told(), self._client.stream("POST", path, json=body) as response:
            if not response.is_success:
                response.read()
            _refuse_errors(response)
            for line in response.iter_lines():
                name, _, data = line.partition(":")
                if name != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                try:
                    event = _decoded(data.encode(), ToldEvent)
                except TypeError as error:
                    raise AskError(f"{self._place} sent an event that is none of a chat: {error}.") from None
                if event.error:
                    raise AskError(_message({"error": event.error}) or "The server failed.")
                yield event
        raise AskError(f"{self._place} ended its answer without data: [DONE].")

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException as error:
            doing = "reached" if isinstance(error, httpx.ConnectTimeout) else "heard of"
            raise AskError(f"{self._place} was not {doing} in time.") from None
        except httpx.ConnectError as error:
            raise AskError(self._unreachable(str(error))) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, ValueError) as error:
            cause = str(error) or type(error).__name__
            raise AskError(
                f"{self._place} broke off: {cause.rstrip('.')}. If it speaks TLS, its URL is https://."
            ) from None

    def _unreachable(self, cause: str) -> str:
        if "CERTIFICATE_VERIFY_FAILED" in cause:
            return f"The certificate of {self._place} is not trusted ({_reason(cause)}); --ca-file names one that is."
        if "WRONG_VERSION_NUMBER" in cause or "record layer" in cause.lower():
            return f"{self._place} speaks no TLS: its URL is http://."
        return (
            f"Nobody answers at {self._place} ({_reason(cause)}). `headrace serve` starts a server; one that runs elsewhere is "
            "named by its URL."
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that say which server, and how it is asked."""
    parser.add_argument("--api-key", metavar="KEY", help=f"the key to send [{' or '.join(_KEYS)}]")
    parser.add_argument("--uds", metavar="PATH", help="a Unix socket on which the server listens")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM certificates to trust, as for one that signed itself")


def key_of(given: str | None, environ: Mapping[str, str]) -> str | None:
    """The key to send: the one given, or else the first that the environment has."""
    keys = [given, *(environ.get(name, "").partition(",")[0].strip() for name in _KEYS)]
    return next((key for key in keys if key), None)


def _decoded(content: bytes, kind: type[Told]) -> Told:
    """Raises TypeError: it is of another kind."""
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise TypeError(str(error)) from None


def _refuse_errors(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        said = _message(_decoded(response.content, dict))
    except TypeError:
        said = None
    text = said or f"{response.request.url.path} is answered {response.status_code} {response.reason_phrase}."
    if response.status_code == 401:
        text += f" Here: --api-key KEY, or {_KEYS[0]}."
    raise AskError(text, response.status_code)


def _message(body: Mapping[str, Any]) -> str | None:
    error = body.get("error")
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else None


def _reason(cause: str) -> str:
    """Without numbers of errors and places in OpenSSL's source."""
    return re.sub(r"^\[[^\]]*\] ?|\(_ssl\.c:\d+\)", "", cause).strip().rstrip(".") or "no reason given"
