"""The processes of servers that a benchmark has started: which is which, and the processor time that they have taken."""

import os
from pathlib import Path


def engine_pid(engine: str) -> int:
    """The process of this engine of a server that we have started.

    Raises:
        RuntimeError: there is none.
    """
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if _names(_read(path).split(b"\0"), engine) and _is_ours(int(path.parent.name)):
            return int(path.parent.name)
    raise RuntimeError(f"no process of {engine}")


def _names(words: list[bytes], engine: str) -> bool:
    """Whether a command line is this engine's; that of an only engine, which is called `engine`, does not name it."""
    if engine == "engine":
        return words[1:3] == [b"-m", b"engine"]
    return any(f'"engine":"{engine}"'.encode() in word.replace(b" ", b"") for word in words)


def _is_ours(pid: int) -> bool:
    """Whether the process descends from this one."""
    while pid > 1 and pid != os.getpid():
        after_name = _read(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
        pid = int(after_name[1]) if after_name else 0
    return pid == os.getpid()


def _read(path: Path) -> bytes:
    """What a file of /proc says; nothing if its process has ended."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def thread_seconds(pid: int) -> float:
    """Processor time that a process' main thread has taken. An engine's is its loop; the model is computed in others."""
    return int(_read(Path(f"/proc/{pid}/task/{pid}/schedstat")).split()[0]) / 1e9
