"""Memory that processes of one server share: the server makes it, its children inherit the descriptor (`engine.ipc.child.spawn`).

It has no name in any folder, so nothing is left behind however they end, and it outlives each of them as long as the server lives.
"""

import os


def shared_memory(name: str) -> int | None:
    """A new, empty piece that can be sealed, as a descriptor; None: the system has none (it takes Linux).

    Args:
        name: for people who look at a process's descriptors.

    Raises:
        OSError: the system refuses.
    """
    if not hasattr(os, "memfd_create"):
        return None
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
