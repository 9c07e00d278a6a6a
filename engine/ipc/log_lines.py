"""The log of an engine's processes: every line says whose it is, also of what nobody has caught."""

import logging
import sys
import threading

log = logging.getLogger("headrace.engine")


def name_log_lines(name: str, level: str) -> None:
    """Log to stderr, with `name` in each line.

    Args:
        name: of this process, among those of a server.
        level: least severe that is logged, in any case.
    """
    logging.basicConfig(level=level.upper(), format=f"%(asctime)s %(levelname)s {name}: %(message)s")
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: log.critical("ends by a defect", exc_info=(kind, error, trace))
    threading.excepthook = _thread_ended


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        caught = ended.exc_type, ended.exc_value, ended.exc_traceback
        log.critical("a thread ends by a defect", exc_info=caught)
