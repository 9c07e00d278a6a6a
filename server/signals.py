"""What signals mean while no event loop handles them: before the server is up, and after it."""

import os
import signal
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def end_on_signals() -> None:
    """From now on Ctrl-C and SIGTERM end the process at once, with 128 + their number.

    Not by an exception: one that is raised in the middle of an import may end as another one's traceback, or nowhere. Nothing
    needs to be tidied up: an engine that starts sees that its stdin has ended, and takes the folder of its sockets along.
    """
    for number in SIGNALS:
        signal.signal(number, _end)


def _end(number: int, frame: object) -> NoReturn:
    os._exit(128 + number)
