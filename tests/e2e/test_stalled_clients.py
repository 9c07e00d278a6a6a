"""Clients that never read, over real sockets, before a real engine: nothing goes on being computed for them."""

import asyncio
import contextlib
import socket

import pytest

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.ipc.child import module_arguments
from server.engines.engines import Engines
from tests.server.engines.harness import eventually, make_app, run, running
from tests.server.http import real_server
from tests.server.http.real_server import QUICK, answers
from tests.server.http.test_whole_server import post

pytestmark = pytest.mark.processes

CLIENTS = 4
LONG = {"prompt": "Once upon a time", "max_tokens": 1800, "ignore_eos": True, "temperature": 0, "stream": True}


def test_streams_that_nobody_takes_are_aborted_in_the_engine_and_their_blocks_are_free():
    settings = Settings(kv_blocks=1000, prefix_caching=False)
    command = module_arguments("engine", settings, resolve_model(None))

    async def body():
        async with running(command=command, settings=settings) as rig:
            app = make_app(settings, Engines([rig.client]), rig.metrics, rig.drain)
            async with real_server.running(app, QUICK) as server:
                await asyncio.wait_for(check(server, rig), 120)

    async def check(server, rig):
        with contextlib.ExitStack() as sockets:
            for _ in range(CLIENTS):
                client = sockets.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.connect(("127.0.0.1", server.port))
                client.sendall(post("/v1/completions", LONG))
            await eventually(lambda: rig.sample("headrace_sequences_running") == CLIENTS)
            assert rig.sample("headrace_kv_blocks", state="used") >= CLIENTS
            await eventually(lambda: server.refusals == ["client_stalled"] * CLIENTS)
            await eventually(lambda: rig.client.open_count == 0)
        short = LONG | {"max_tokens": 2, "stream": False}
        ((status, _, _),) = answers(await server.ask(post("/v1/completions", short)))
        assert status == 200
        await eventually(lambda: rig.sample("headrace_sequences_running") == 0)
        assert rig.sample("headrace_kv_blocks", state="free") == rig.sample("headrace_kv_pool_blocks") > 0
        assert rig.sample("headrace_sequences_finished_total", reason="abort") == CLIENTS
        assert rig.sample("headrace_sequences_finished_total", reason="length") == 1
        generated = rig.sample("headrace_generation_tokens_total")
        assert generated < CLIENTS * LONG["max_tokens"]

    run(body)
