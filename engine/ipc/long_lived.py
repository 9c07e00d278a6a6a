"""What a process has when its start ends stays with it, so the garbage collector need not look at it again and again."""

import gc


def keep_for_life() -> None:
    """Set all that is there now aside, modules above all.

    Otherwise every full collection walks over it: on a CPU 30 ms in the server's process and 40 ms in an engine's, more on a busy
    machine, in which nothing else runs there and every stream waits.
    """
    gc.collect()
    gc.freeze()
