"""What a server's processes use beside a run: processors and memory, sampled every second, and GPUs where `nvidia-smi` is.

psutil knows processes on every platform, and a server's are a tree that changes; it is a dependency of the server already.
"""

import shutil
import statistics
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import psutil

SAMPLE_SECONDS = 1.0
_GPU = ("nvidia-smi", "--query-gpu=index,utilization.gpu,memory.used", "--format=csv,noheader,nounits", "--loop=1")
_LOCAL = ("127.0.0.1", "localhost", "::1")


class ProcessUsage:
    """Samples of a process and all below it.

    Args:
        pid: of the process. Raises psutil.NoSuchProcess if there is none.
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[int, psutil.Process] = {}
        self.processors: list[float] = []
        self.memory: list[int] = []
        self.sample()
        self.processors.clear()  # the first says nothing: it is since the last

    def sample(self) -> None:
        """One more sample; none once the process is gone."""
        try:
            found = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        self._seen = {each.pid: self._seen.get(each.pid, each) for each in found}
        busy, memory = 0.0, 0
        for each in self._seen.values():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                busy += each.cpu_percent() / 100
                memory += each.memory_info().rss
        self.processors.append(busy)
        self.memory.append(memory)

    def summary(self) -> dict[str, float]:
        """`cpu_mean`, `cpu_max` in processors, `memory_max` in bytes (what processes share counts for each), and `processes`."""
        if not self.processors:
            return {}
        mean, most = statistics.fmean(self.processors), max(self.processors)
        return {"cpu_mean": mean, "cpu_max": most, "memory_max": float(max(self.memory)), "processes": len(self._seen)}


def gpu_summary(text: str) -> dict[str, float]:
    """`gpuN_busy_mean` as shares and `gpuN_memory_max` in bytes, from lines of `index, percent, MiB`; others are skipped."""
    busy: dict[int, list[float]] = {}
    memory: dict[int, float] = {}
    for line in text.splitlines():
        with suppress(ValueError):
            index, percent, mebibytes = (float(part) for part in line.split(","))
            busy.setdefault(int(index), []).append(percent / 100)
            memory[int(index)] = max(memory.get(int(index), 0.0), mebibytes * 2**20)
    means = {f"gpu{index}_busy_mean": statistics.fmean(values) for index, values in busy.items()}
    return means | {f"gpu{index}_memory_max": most for index, most in memory.items()}


def listener(target: str) -> int | None:
    """The process of this machine that listens on the target's port, if this user may see it."""
    parts = urlsplit(target)
    if parts.hostname not in _LOCAL:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    with suppress(psutil.AccessDenied):
        for each in psutil.net_connections("tcp"):
            if each.status == psutil.CONN_LISTEN and each.laddr and each.laddr.port == port and each.pid is not None:
                return int(each.pid)
    return None


@contextmanager
def usage_of(pid: int | None) -> Iterator[dict[str, float]]:
    """Sample a process while the block runs, in a thread; the dictionary has the summary when the block has ended.

    Args:
        pid: None: nothing is sampled.
    """
    found: dict[str, float] = {}
    if pid is None:
        yield found
        return
    usage, over = ProcessUsage(pid), threading.Event()

    def go_on() -> None:
        while not over.wait(SAMPLE_SECONDS):
            usage.sample()

    thread = threading.Thread(target=go_on, name="usage", daemon=True)
    with _gpus() as gpus:
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()
            usage.sample()
    found |= usage.summary() | gpus


@contextmanager
def _gpus() -> Iterator[dict[str, float]]:
    found: dict[str, float] = {}
    if shutil.which(_GPU[0]) is None:
        yield found
        return
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(_GPU, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield found
        finally:
            process.kill()
            process.wait()
            said.seek(0)
            found |= gpu_summary(said.read())
