"""TLS on real sockets: certificates and their renewal, clients that begin a handshake and never end it, those that speak HTTP."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import ssl
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from configs.settings import Settings
from server.http.certificate import CertificateError, ServerCertificate
from server.listen import ListenError, listen, listeners_of
from tests.server.engines.harness import eventually, run
from tests.server.http.real_server import QUICK, Echo, get, running, statuses
from tests.server.http.self_signed import needs_openssl, self_signed

pytestmark = [pytest.mark.processes, needs_openssl]

PATIENT = replace(
    QUICK, head_seconds=20.0, body_seconds=20.0, idle_seconds=20.0
)  # handshakes take their time on busy cores


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two certificates with their keys."""
    folder = tmp_path_factory.mktemp("tls")
    return [self_signed(folder, name) for name in ("one", "two")]


@pytest.fixture
def files(made, tmp_path) -> tuple[str, str]:
    """Copies of the first, to be overwritten."""
    for source, name in zip(made[0], ("cert.pem", "key.pem"), strict=True):
        shutil.copy(source, tmp_path / name)
    return str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")


def trusting(*chains: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for chain in chains:
        context.load_verify_locations(chain)
    return context


def served(check, files, limits=None):
    """Run `check(server, echo)` on a server that speaks TLS."""

    async def body():
        app, certificate = Echo(), ServerCertificate(*files)
        listeners = replace(listen("127.0.0.1", 0), certificate=certificate)
        async with running(app, limits, listeners) as server:
            await asyncio.wait_for(check(server, app), 60)

    run(body)


async def ask(server, context, data, name="localhost"):
    """All that is answered over TLS, and the organization for which the certificate was made."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname=name)
    subject = dict(pair[0] for pair in writer.get_extra_info("peercert")["subject"])
    writer.write(data)
    answer = await reader.read()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return answer, subject["organizationName"]


def test_a_client_that_trusts_the_certificate_is_served_and_others_are_not(made):
    async def check(server, echo):
        url = f"https://localhost:{server.port}"
        async with httpx.AsyncClient(verify=trusting(made[0][0])) as client:
            answer = await client.post(f"{url}/x", content=b"abc" * 100_000)
            assert (await client.get(f"{url}/chunks")).json()["method"] == "GET"  # on the same connection
        assert answer.status_code == 200 and len(echo.requests[0][2]) == 300_000
        async with httpx.AsyncClient(verify=trusting(made[1][0])) as client:
            with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
                await client.get(url)
        await eventually(lambda: len(server.connections) == 0)

    served(check, made[0])


def test_an_application_is_told_that_it_is_https_and_of_which_client(made):
    scopes = []

    async def app(scope, receive, send):
        scopes.append(scope)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def body():
        listeners = replace(listen("127.0.0.1", 0), certificate=ServerCertificate(*made[0]))
        async with running(app, None, listeners) as server:
            data, _ = await ask(server, trusting(made[0][0]), get())
            assert statuses(data) == [204]

    run(body)
    assert scopes[0]["scheme"] == "https" and scopes[0]["client"][0] == "127.0.0.1"


def test_a_renewed_certificate_is_taken_up_and_open_connections_stay(made, files):
    async def check(server, echo):
        both, certificate = trusting(made[0][0], made[1][0]), server.listeners.certificate
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=both, server_hostname="localhost")
        writer.write(get("/hold"))
        await eventually(lambda: len(echo.requests) == 1)
        shutil.copy(made[1][0], files[0])  # the key is not there yet
        certificate.refresh()
        assert (await ask(server, both, get()))[1] == "one"
        shutil.copy(made[1][1], files[1])
        certificate.refresh()
        for name in ("localhost", "127.0.0.1"):  # which clients send no name
            assert (await ask(server, both, get(), name))[1] == "two"
        echo.gate.set()
        assert statuses(await reader.read()) == [200]
        writer.close()

    served(check, files)


def test_what_cannot_be_used_is_said_once_and_the_old_certificate_stays(made, files, caplog):
    caplog.set_level(logging.INFO, "headrace.http")
    certificate = ServerCertificate(*files)
    certificate.refresh()
    assert caplog.messages == []
    Path(files[0]).write_text("nonsense")
    for _ in range(3):
        certificate.refresh()
    (told,) = caplog.messages
    assert files[0] in told and "stays in use" in told
    shutil.copy(made[1][0], files[0])
    os.unlink(files[1])
    certificate.refresh()
    assert "No such file" in caplog.messages[-1]
    os.mkfifo(files[1])
    certificate.refresh()  # and does not wait for a writer
    assert "no regular file" in caplog.messages[-1]
    os.unlink(files[1])
    shutil.copy(made[1][1], files[1])
    certificate.refresh()
    assert "has changed and is in use" in caplog.messages[-1] and len(caplog.messages) == 4


def test_files_are_looked_at_while_the_server_runs(made, files, monkeypatch):
    monkeypatch.setattr("server.http.certificate._LOOK_SECONDS", 0.001)

    async def check(server, echo):
        watch = asyncio.create_task(server.listeners.certificate.watch())
        for source, target in zip(made[1], files, strict=True):
            shutil.copy(source, target)
        both = trusting(made[0][0], made[1][0])
        while (await ask(server, both, get()))[1] != "two":
            await asyncio.sleep(0.01)
        watch.cancel()

    served(check, files)


def test_a_handshake_that_does_not_end_gives_way(made):
    async def check(server, echo):
        silent = [await server.open() for _ in range(4)]
        await eventually(lambda: len(server.connections) == 4)
        data, _ = await ask(server, trusting(made[0][0]), get())
        assert statuses(data) == [200]
        assert await silent[0][0].read() == b""  # the one that was silent the longest
        for _, writer in silent:
            writer.close()
        await eventually(lambda: len(server.connections) == 0)

    served(check, made[0], replace(PATIENT, connections=8))


def test_a_handshake_has_a_deadline(made):
    async def check(server, echo):
        reader, writer = await server.open()
        assert await reader.read() == b""
        await eventually(lambda: len(server.connections) == 0)
        writer.close()

    served(check, made[0], QUICK)


def test_a_connection_has_one_place_before_and_after_its_handshake(made):
    async def check(server, echo):
        context = trusting(made[0][0])
        waiting = [
            await asyncio.open_connection("127.0.0.1", server.port, ssl=context, server_hostname="localhost")
            for _ in range(2)
        ]
        await eventually(lambda: len(server.connections) == 2)
        for reader, writer in waiting:  # neither has given way to the other
            writer.write(get())
            assert statuses(await reader.read()) == [200]
            writer.close()

    served(check, made[0], replace(PATIENT, connections=4))


def test_plain_http_is_not_answered_and_the_log_says_why(made, caplog):
    async def check(server, echo):
        with contextlib.suppress(ConnectionError):
            assert statuses(await server.ask(get())) == []
        await eventually(lambda: any("https://" in message for message in caplog.messages))
        assert len([message for message in caplog.messages if "https://" in message]) == 1
        await eventually(lambda: len(server.connections) == 0)

    served(check, made[0])


def test_early_answers_and_refusals_end_over_tls_too(made):
    async def check(server, echo):
        context = trusting(made[0][0])
        head = b"POST /early HTTP/1.1\r\nHost: here\r\nContent-Length: 100000\r\n\r\n" + b"x" * 1000
        assert statuses((await ask(server, context, head))[0]) == [200]
        assert statuses((await ask(server, context, b"garbage\r\n\r\n"))[0]) == [400]
        assert statuses((await ask(server, context, get(version="1.0", path="/chunks")))[0]) == [200]

    served(check, made[0], PATIENT)


def test_a_client_that_leaves_is_noticed(made):
    async def check(server, echo):
        _, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=trusting(made[0][0]), server_hostname="localhost"
        )
        writer.write(get("/hold"))
        await eventually(lambda: len(echo.requests) == 1)
        writer.close()
        await eventually(lambda: echo.left == 1 and len(server.connections) == 0)

    served(check, made[0])


@pytest.mark.parametrize("broken", ["absent", "empty", "folder", "mismatch", "encrypted"])
def test_files_that_cannot_be_used_are_refused_at_the_start(made, tmp_path, broken):
    (chain, key), (_, other) = made
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    if broken == "encrypted":
        chain, key = self_signed(tmp_path, "secret", password="secret")
    chain, key, cause = {
        "absent": ("/nowhere.pem", key, "No such file"),
        "empty": (str(empty), key, "no certificate and key in PEM"),
        "folder": (str(tmp_path), key, "no regular file"),
        "mismatch": (chain, other, "MISMATCH"),
        "encrypted": (chain, key, "without a password"),
    }[broken]
    with pytest.raises(CertificateError, match=cause) as caught:
        ServerCertificate(chain, key)
    assert chain in str(caught.value)
    with pytest.raises(ListenError, match=cause):
        listeners_of(Settings(tls_cert=chain, tls_key=key, port=0))


def test_one_file_may_hold_both(made, tmp_path):
    both = tmp_path / "both.pem"
    both.write_text("".join(Path(path).read_text() for path in made[0]))
    ServerCertificate(str(both))
    with listeners_of(Settings(tls_cert=str(both), port=0)) as listeners:
        assert listeners.url == f"https://127.0.0.1:{listeners.port}"


def test_a_machine_without_descriptors_refuses_a_client_and_keeps_nothing_of_it(made, monkeypatch, caplog):
    async def check(server, echo):
        def none_left(descriptor):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

        with monkeypatch.context() as patch:
            patch.setattr(os, "dup", none_left)
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert len(server.connections) == 0
        assert statuses((await ask(server, trusting(made[0][0]), get()))[0]) == [200]

    served(check, made[0])
    assert "Too many open files" in caplog.text and "Traceback" not in caplog.text
