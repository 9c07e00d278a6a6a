"""`headrace doctor --url` of servers that do well, that do not, and that are none."""

import asyncio
import contextlib
import time

import pytest

from configs.settings import Settings
from server.client import checkup
from server.client.api import Api
from server.client.checkup import examine_server, verdict_of
from server.commands import doctor
from server.engines.engines import Engines
from tests.server.engines.harness import make_app, run, running
from tests.server.http import real_server
from tests.server.http.real_server import Echo

pytestmark = pytest.mark.processes


def examined(settings=None, *, key=None, clock=time.time, before=None, app=None):
    """What is found of a server over a scripted engine, by its subjects, and the verdict."""
    found = []

    def ask(url):
        with contextlib.closing(Api(url, key=key, seconds=30)) as api:
            found.extend(examine_server(api, clock))

    async def body():
        async with running(settings=settings or Settings()) as rig:
            served = app or make_app(rig.settings, Engines([rig.client]), rig.metrics, rig.drain)
            if before is not None:
                await before(rig)
            async with real_server.running(served) as server:
                await asyncio.to_thread(ask, f"http://127.0.0.1:{server.port}")

    run(body)
    return {finding.subject: finding for finding in found}, verdict_of(found)


def test_a_server_that_does_well():
    found, verdict = examined()
    assert list(found) == [
        "reached", "clock", "version", "/ready", "/health", "engine", "model", "one token",
    ]  # fmt: skip
    assert found["model"].detail == "scripted" and found["one token"].detail.startswith("1 after ")
    assert "in the queue" in found["one token"].detail and found["engine"].detail == "ready"
    assert verdict.endswith("It serves.")


@pytest.mark.parametrize(("seconds", "said"), [(-100, "ahead of"), (3600, "behind")])
def test_a_clock_that_is_wrong_is_told(seconds, said):
    found, verdict = examined(clock=lambda: time.time() + seconds)
    assert found["clock"].detail.endswith(f" s {said} this machine's")
    assert verdict.endswith("Something is wrong: clock.")


@pytest.mark.parametrize(
    ("now", "detail"),
    [
        (0, "100 s ahead of this machine's"), (3700, "3600 s behind this machine's"), (97, "as this machine's"),
        (103, "as this machine's"),
    ],
)  # fmt: skip
def test_clocks_are_compared(now, detail):
    (finding,) = checkup._clock("Thu, 01 Jan 1970 00:01:40 GMT", lambda: now)
    assert finding.detail == detail


def test_without_a_key_it_says_which_one_is_missing():
    found, verdict = examined(Settings(api_key=["k"]))
    assert "--api-key" in found["models"].detail and found["models"].fatal
    assert "Something is wrong: models." in verdict
    found, verdict = examined(Settings(api_key=["k"]), key="k")
    assert verdict.endswith("It serves.")


def test_a_server_that_takes_no_requests_is_told_in_its_own_words():
    async def draining(rig):
        rig.drain.begin()

    found, verdict = examined(before=draining)
    assert "shutting down" in found["/ready"].detail and found["/ready"].fatal
    assert "shutting down" in found["models"].detail and verdict.endswith("Something is wrong: /ready, models.")
    assert found["/health"].lost == ""


def test_a_server_of_another_kind():
    _, verdict = examined(app=Echo())
    assert "no OpenAI-compatible server" in verdict and "Something is wrong" in verdict


def test_nobody_there(capsys):
    assert doctor(["--url", "http://127.0.0.1:9"]) == 1
    assert "Nobody answers at http://127.0.0.1:9 (Connection refused)" in capsys.readouterr().out


def test_a_file_that_is_no_certificate(capsys):
    assert doctor(["--url", "https://127.0.0.1:9", "--ca-file", "/nowhere.pem"]) == 2
    assert "/nowhere.pem cannot be used" in capsys.readouterr().err


def test_an_empty_socket_is_refused_and_not_taken_for_the_usual_address(capsys):
    assert doctor(["--uds", ""]) == 2
    assert "--uds is empty" in capsys.readouterr().err
