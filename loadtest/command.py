"""The command that this distribution adds to `headrace`, found by its entry point. Light: `headrace --help` imports it."""

from collections.abc import Sequence


def loadtest(arguments: Sequence[str]) -> int:
    """Replay traces against a server, compare runs, simulate."""
    from loadtest.cli import main

    return main(arguments)
