"""File descriptors: each connection takes one, and where there are none left the system closes new ones without a word."""

import logging
import os
import resource

from configs.settings import Settings

RESERVED = (
    96  # for sockets to engines, files of models and templates, pipes of threads and children, connections that part
)
_BELOW_LIMIT = 16  # connections that are allowed however few descriptors there are
_log = logging.getLogger("headrace.http")


def connection_limit(settings: Settings) -> int:
    """How many connections may be open: as many as asked for, if there are descriptors for them.

    Raises this process's soft limit to the hard one, and logs a line where even that is too little for `max_waiting` clients.
    """
    descriptors = raise_descriptor_limit()
    room = max(_BELOW_LIMIT, descriptors - RESERVED - _open_descriptors())
    if room < settings.max_waiting:
        _log.warning(
            "this process may have %d files open, so %d connections; max_waiting is %d: raise the limit (`ulimit -Hn`, "
            "LimitNOFILE=, `docker run --ulimit nofile=...`)",
            descriptors,
            room,
            settings.max_waiting,
        )
    return min(settings.max_connections, room)


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS has a hard limit that it does not grant
        return soft
    return hard


def _open_descriptors() -> int:
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 0
