"""File descriptors: each connection takes one, and where there are none left the system closes new ones without a word."""

import logging
import os
import resource
from dataclasses import replace
from math import ceil

from configs.settings import Settings
from server.http.limits import HttpLimits

RESERVED = 64  # for sockets to engines, files of models and templates, pipes of threads and children
_LEAST, _LEAST_PARTING = 16, 4  # connections that are allowed however few descriptors there are
_log = logging.getLogger("headrace.http")


def limits_of(settings: Settings, share: int = 1) -> HttpLimits:
    """How many connections may be open, and how many more part: as many as asked for, if there are descriptors for them.

    Args:
        settings: the server's.
        share: among so many processes, of which this is one, connections are divided.

    Raises this process's soft limit to the hard one, and logs a line where even that is too little for `max_waiting` clients.
    """
    descriptors = raise_descriptor_limit()
    free, usual = descriptors - RESERVED - _open_descriptors(), HttpLimits()
    parting = min(usual.parting, max(_LEAST_PARTING, free // 4))
    room = max(_LEAST, free - parting)
    if room < settings.max_waiting / share:
        _log.warning(
            "this process may have %d files open, so %d connections; max_waiting is %d: raise the limit (`ulimit -Hn`, "
            "LimitNOFILE=, `docker run --ulimit nofile=...`)",
            descriptors,
            room,
            settings.max_waiting,
        )
    return replace(usual, connections=min(ceil(settings.max_connections / share), room), parting=parting)


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
