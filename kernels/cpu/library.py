"""The built library, opened with ctypes.

With ctypes rather than a torch extension, the sources include no torch headers: they compile in seconds, with any compiler, and
the library works with every torch version. A call releases the GIL.
"""

import ctypes
from functools import cache
from pathlib import Path

from kernels.cpu.variants import choose

_pointer = ctypes.c_void_p
_int = ctypes.c_int64


def best_library() -> ctypes.CDLL:
    """The best library there is, for what all of them do alike.

    Raises:
        OSError: none is built that this processor can run.
    """
    chosen = choose()
    if chosen.library is None:
        raise OSError(chosen.reason)
    return open_library(chosen.library)


@cache
def open_library(path: Path) -> ctypes.CDLL:
    """The library at `path`, its functions declared.

    Raises:
        OSError: it cannot be loaded.
    """
    opened = ctypes.CDLL(str(path))
    for name, result, arguments in (
        ("team", _pointer, (ctypes.c_int32,)),
        ("team_free", None, (_pointer,)),
        ("decoder", _pointer, (_pointer, _pointer)),
        ("decoder_free", None, (_pointer,)),
        ("forward", None, (_pointer, _pointer, _pointer, _pointer)),
        ("logits", None, (_pointer, _pointer, _int, _pointer)),
        ("mask", None, (_pointer, _pointer, _int, _pointer, _int, _pointer, _int)),
        ("block_bytes", _int, (_int,)),
        ("record_bytes", _int, (_int,)),
        ("pack", None, (_int, _pointer, _int, _int, _int, _pointer)),
        ("pack_file", _int, (ctypes.c_int32, _pointer, _int)),
        ("unpack", None, (_pointer, _pointer)),
        ("tiles_permitted", ctypes.c_int32, ()),
        ("tiles_from", None, (_int, _int)),
        ("seconds", ctypes.c_double, (_int, _int, _int, ctypes.c_int32)),
        ("products", ctypes.c_int32, (_pointer, _int, _pointer, _pointer)),
        ("read", None, (_pointer, _pointer, _int, _pointer)),
        ("linear", None, (_pointer, _pointer, _int, _pointer, _int, _pointer)),
        ("attention", None, (*[_pointer] * 5, _int, _int, _int, _pointer, _pointer)),
    ):
        function = getattr(opened, f"headrace_{name}")
        function.restype, function.argtypes = result, arguments
    return opened
