"""`headrace`, from its first moment: what Ctrl-C means while all else is still to be imported, then `server/commands.py`. It
imports only what the interpreter has loaded before it.
"""

import os
import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command of these arguments, by default the process's own.

    Returns:
        its exit code; 130 after Ctrl-C, 141 if nobody reads what it prints.
    """
    try:
        if argv is None:
            from server.signals import end_on_signals

            end_on_signals()
        from server.commands import run_command

        code = run_command(list(sys.argv[1:] if argv is None else argv))
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        with open(os.devnull, "wb") as nowhere:  # for what is still in the buffer
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
