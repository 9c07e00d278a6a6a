"""One server's HTTP API, for commands that speak to a person: what goes wrong becomes a sentence."""

import argparse
import json
import re
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

URL = "http://127.0.0.1:8000"
_CONNECT_SECONDS = 5.0
_KEYS = ("HEADRACE_API_KEY", "OPENAI_API_KEY")


class AskError(Exception):
    """The server was not reached, or refused: a sentence. `status`: of its answer, if there was one."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
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
            return [str(each["id"]) for each in self.request("GET", "/v1/models").json()["data"]]
        except (ValueError, KeyError, TypeError):
            raise AskError(f"What answers at {self._place} is no OpenAI-compatible server.") from None

    def request(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx.Response:
        """An answer that is no refusal.

        Raises:
            AskError: there is none.
        """
        with self._told():
            response = self._client.request(method, path, json=body)
        _refuse_errors(response)
        return response

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a stream, each as its JSON. To close the iterator is to leave.

        Raises:
            AskError: it is refused, or breaks.
        """
        with self._told(), self._client.stream("POST", path, json=body) as response:
            if response.is_error:
                response.read()
            _refuse_errors(response)
            for line in response.iter_lines():
                name, _, data = line.partition(":")
                if name != "data" or data.strip() == "[DONE]":
                    continue
                event = json.loads(data)
                if "error" in event:
                    raise AskError(_message(event) or "The server failed.")
                yield event

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


def _refuse_errors(response: httpx.Response) -> None:
    if not response.is_error:
        return
    try:
        said = _message(response.json())
    except ValueError:
        said = None
    text = said or f"{response.request.url.path} is answered {response.status_code} {response.reason_phrase}."
    if response.status_code == 401:
        text += f" Here: --api-key KEY, or {_KEYS[0]}."
    raise AskError(text, response.status_code)


def _message(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message) if message else None


def _reason(cause: str) -> str:
    """Without numbers of errors and places in OpenSSL's source."""
    return re.sub(r"^\[[^\]]*\] ?|\(_ssl\.c:\d+\)", "", cause).strip().rstrip(".") or "no reason given"
