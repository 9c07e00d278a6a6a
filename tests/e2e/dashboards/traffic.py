"""A server with all that metrics tell of (two engines with roles, two tiers, two tenants, too small a pool), and what moves it."""

import asyncio
import hashlib
import itertools
import random
import signal
from pathlib import Path

import httpx
import psutil

from tests.e2e.server_process import ServerProcess

KEYS = {"ann": "key-of-ann", "ben": "key-of-ben"}
FILED = {"cyd": "key-of-cyd"}  # in a file, with a limit that the traffic exceeds
FLAGS = (
    *("--http-processes", "2"),
    *("--roles", "prefill:1", "decode:1", "--threads", "1"),
    *("--kv-blocks", "24", "--kv-host-gib", "0.02", "--preemption", "swap", "--max-model-len", "512"),
    *("--resume-seconds", "5"),  # after which streams that were read are forgotten, and counted
    *("--api-key", *KEYS.values(), "--key-names", *KEYS, "--scheduling", "fair", "--tenant-weights", "ann=2"),
)


def key_file(folder: Path) -> Path:
    """A new file of keys in this folder."""
    entries = (
        f"  - name: {name}\n    hash: sha256:{hashlib.sha256(key.encode()).hexdigest()}\n    requests_per_minute: 30\n"
        for name, key in FILED.items()
    )
    file = folder / "keys.yaml"
    file.write_text("keys:\n" + "".join(entries))
    return file


PROMPTS = [[1000 * number + place for place in range(180)] for number in range(1, 9)]
LANES = 10  # requests at once: more than two pools of 24 blocks have room for


class Traffic:
    """Requests of all tenants, good and bad. `keys`: the file of those that are in one."""

    def __init__(self, server: ServerProcess, keys: Path) -> None:
        self._server = server
        self._keys = keys
        self._numbers = itertools.count()
        self._draw = random.Random(0)
        self.answered = self.refused = 0

    def run(self, seconds: float) -> None:
        """Keep `LANES` requests open for so long; a third of the time in, the engine that decodes is killed, then the keeper;
        then the file of keys is spoiled."""
        asyncio.run(self._run(seconds))

    async def _run(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        async with httpx.AsyncClient(base_url=self._server.url, timeout=120) as client:
            lanes = [self._lane(client, tenant, end) for tenant in KEYS for _ in range(LANES // 2)]
            lanes += [self._lane(client, tenant, end) for tenant in FILED]
            faults = (
                self._kill("engine", seconds / 3),
                self._kill("engine.keeper", seconds / 2),
                self._spoil(seconds * 2 / 3),
            )
            await asyncio.gather(*lanes, *faults)

    async def _lane(self, client: httpx.AsyncClient, tenant: str, end: float) -> None:
        while asyncio.get_running_loop().time() < end:
            number = next(self._numbers)
            body = {"prompt": self._draw.choice(PROMPTS), "max_tokens": 48, "temperature": 0, "ignore_eos": True}
            if number % 5 == 4:
                body |= {"stream": True, "resumable": True}
            if number % 3 == 1:
                body |= {"deadline_ms": 60_000 if number % 2 else 1}
            if number % 7 == 6:
                body |= {"temperature": 9}
            headers = {"Authorization": f"Bearer {(KEYS | FILED)[tenant] if number % 11 else 'no such key'}"}
            answer = await client.post("/v1/completions", json=body, headers=headers)
            self.answered += answer.status_code == 200
            self.refused += answer.status_code in (400, 401, 429)

    async def _kill(self, module: str, seconds: float) -> None:
        """The last process of this module."""
        await asyncio.sleep(seconds)
        children = psutil.Process(self._server.process.pid).children()
        *_, last = (child for child in children if module in child.cmdline())
        last.send_signal(signal.SIGKILL)

    async def _spoil(self, seconds: float) -> None:
        """Write what is no file of keys; the server goes on with those that it has read."""
        await asyncio.sleep(seconds)
        self._keys.write_text("keys: none")
