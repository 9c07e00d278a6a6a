"""A keeper for tests: real sockets and real shared memory, its loop in a thread of this process."""

import asyncio
import os
import socket
import threading
import time

from engine.ipc.keeper_address import KeeperAddress
from engine.keeper.budget import KeeperBudget
from engine.keeper.client import KeeperClient
from engine.keeper.disk import KeptDisk
from engine.keeper.host import KeptHost
from engine.keeper.keeper import Keeper
from engine.keeper.messages import Hello
from engine.keeper.session import serve
from engine.keeper.slab import SharedSlab
from engine.kv_store.disk.record import size_of

SIZE = 96  # bytes of a block


def hello(**other):
    return Hello(
        **{
            "pid": 0,
            "client": 0,
            "fingerprint": "model",
            "block_bytes": SIZE,
            "block_tokens": 4,
            "element_bytes": 2,
            "fresh": False,
        }
        | other
    )


class KeeperThread:
    """One keeper after the other over the same memory and the same socket."""

    def __init__(self, folder, blocks=4, eviction="lru", disk=0, size=SIZE):
        self.slab = os.memfd_create("test")
        self.listener = socket.socket(socket.AF_UNIX)
        path = str(folder / "keeper")
        self.listener.bind(path)
        self.listener.listen()
        self.address = KeeperAddress(socket=path, slab=self.slab)
        self.budget = KeeperBudget(
            slab=blocks * size, folder=folder / "kv" if disk else None, disk=disk * size_of(size), engines=1
        )
        self.eviction, self.size = eviction, size
        self.start()

    def start(self):
        self.keeper = Keeper(self.slab, self.budget, self.eviction)
        self._started, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()], daemon=True)
        self._thread.start()
        assert self._started.wait(10)

    async def _serve(self):
        self._over = asyncio.Event()
        listener = self.listener.dup()
        server = await serve(self.keeper, listener)
        self._started.set()
        await self._over.wait()
        asyncio.get_running_loop().remove_reader(listener)  # asyncio trips over who is let in while it closes
        await asyncio.sleep(0.005)
        server.close()

    def kill(self):
        """End it in the middle of whatever it does: nothing is tidied up."""
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)
        for _ in range(3):  # who has just been let in has no task yet
            self._loop.run_until_complete(asyncio.sleep(0.005))
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.005))
        self.keeper.close()
        self._loop.close()

    def call(self, work):
        """Do something in the keeper's thread; returns the result."""

        async def body():
            return work()

        return asyncio.run_coroutine_threadsafe(body(), self._loop).result(10)

    def check_integrity(self):
        if self.keeper._books is not None:
            self.call(self.keeper.books.check_integrity)
        if self.keeper._shelf is not None:
            self.call(self.keeper.shelf.check_integrity)

    def host(self, **other):
        """The host tier as another engine sees it."""
        return self.host_on(self.mapped(**other))

    def disk(self, **other):
        """The disk tier as another engine sees it."""
        return self.disk_on(self.mapped(**other))

    host_on, disk_on = staticmethod(KeptHost), staticmethod(KeptDisk)

    def mapped(self, **other):
        client = KeeperClient(self.address, hello(block_bytes=self.size, **other))
        return SharedSlab(client, self.size, pinned=False)

    def close(self):
        self.kill()
        self.listener.close()
        os.close(self.slab)

    def wait_until(self, condition):
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline, "it did not come true in time"
            time.sleep(0.002)

    def run(self, work):
        """Await something in the keeper's thread; returns the result."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(10)
