"""`headrace`, from its first moment: what Ctrl-C means while all else is still to be imported, then `server/commands.py`."""

import sys
from collections.abc import Sequence

from server.signals import end_on_signals


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of these arguments, by default the process's own; its exit code, 130 after Ctrl-C."""
    if argv is None:
        end_on_signals()
    from server.commands import run_command

    try:
        return run_command(list(sys.argv[1:] if argv is None else argv))
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
