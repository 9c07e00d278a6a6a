"""The log of a server's processes, as text or as JSON lines: every line says whose it is, also of what nobody has caught."""

import json
import logging
import sys
import threading
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote

LogFormat = Literal["text", "json"]

log = logging.getLogger("headrace.engine")


class LogFields(dict[str, object]):
    """A message of named values: `name=value` pairs in a line of text, fields of the object in one of JSON."""

    def __str__(self) -> str:
        return " ".join(f"{name}={_plain(value)}" for name, value in self.items())


def _plain(value: object) -> object:
    """A text that may be a client's becomes one word."""
    if isinstance(value, int | float):
        return value
    return quote(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), safe="/[].,:@")


class JsonLines(logging.Formatter):
    """One JSON object a line: `time` (UTC, ISO 8601), `level`, `logger`, and `message` or the fields of a `LogFields`."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": self._process,
        }
        line |= record.msg if isinstance(record.msg, LogFields) else {"message": record.getMessage()}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure_lines(level: str, form: LogFormat, process: str, text: str) -> None:
    """Log to stderr.

    Args:
        level: least severe that is logged, in any case.
        form: of the lines.
        process: whose lines they are, in JSON.
        text: the format of a line of text.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines(process) if form == "json" else logging.Formatter(text))
    logging.basicConfig(level=level.upper(), handlers=[handler])


def name_log_lines(name: str, level: str, form: LogFormat) -> None:
    """Log to stderr, with `name`, which is this process's among those of a server, in each line; also what nobody catches."""
    configure_lines(level, form, name, f"%(asctime)s %(levelname)s {name}: %(message)s")
    logging.captureWarnings(True)
    sys.excepthook = lambda kind, error, trace: log.critical("ends by a defect", exc_info=(kind, error, trace))
    threading.excepthook = _thread_ended


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    if ended.exc_value is not None:
        caught = ended.exc_type, ended.exc_value, ended.exc_traceback
        log.critical("a thread ends by a defect", exc_info=caught)
