"""From settings to a served port and back to an exit code.

The order is the point: listen, start the engine process, and only then import the HTTP stack, which happens while the
engine loads. Nothing heavy may be imported at the top of this file.
"""

import logging
import sys
import time
from typing import TYPE_CHECKING

from configs.loader import ConfigError
from configs.model.source import ModelError, ModelSource
from configs.settings import Settings
from engine.ipc.log_lines import LogFormat, configure_lines
from engine.ipc.long_lived import keep_for_life
from engine.ipc.private_folder import remove_leftovers
from scheduler.types.messages import Event, Failed
from server.engines.launch import CannotLaunch, Incarnation
from server.engines.launcher import Launcher, LocalLauncher
from server.listen import ListenError, listeners_of
from server.signals import end_on_signals
from server.telemetry.traces.extra import missing

if TYPE_CHECKING:
    from server.keys.watch import WatchedKeyFile

_log = logging.getLogger("headrace.engine")

EXIT_FAILED = 1
_HEADERS_SECONDS = 10.0  # for Python to start on a busy machine and to read a file's header


def run(settings: Settings, source: ModelSource) -> int:
    """Serve until a signal or a fatal failure.

    Returns:
        0 after a drain; 1 if the address cannot be listened on, nothing can be written to, the tokenizer or the file of keys
        cannot be read, the machine is too small for so many engines, or no engine starts (or restarts). A signal before the event
        loop runs, or a second one, ends the process at once with 128 + its number.
    """
    started = time.monotonic()
    configure_logging(settings.log_level, settings.log_format)
    end_on_signals()
    if (lacks := missing(settings)) is not None:
        return _fail(lacks)
    engines: dict[str, Incarnation] = {}
    launcher: Launcher | None = None
    try:
        keys = _keys_of(settings)
        listeners = listeners_of(settings)
    except (ConfigError, ListenError) as error:
        return _fail(error)
    try:
        try:
            for folder in remove_leftovers():
                _log.info("removed %s, which a server that was killed had left behind", folder)
            launcher = _launcher(settings, source)
            for name in settings.engine_names:
                engines[name] = launcher.launch(name)
        except OSError as error:
            return _fail(f"the engine's process cannot be started: {error}")
        from server.serving import Serving
        from server.text.chat_template import TemplateError
        from server.text.tokenizer import TokenizerError

        try:
            serving = Serving(settings, source, listeners, launcher, started=started, keys=keys)
        except (ConfigError, TokenizerError, TemplateError, ModelError, OSError) as error:
            return _fail(_refusal(next(iter(engines.values()))) or error)
        keep_for_life()  # while engines load
        return serving.run(engines)
    except CannotLaunch as error:
        return _fail(error)
    finally:
        end_on_signals()  # the loop's handlers are gone with it
        for engine in engines.values():
            engine.close()
        if launcher is not None:
            launcher.close()
        listeners.close()


def _launcher(settings: Settings, source: ModelSource) -> Launcher:
    if settings.ray is None:
        return LocalLauncher(settings, source)
    from server.engines.nodes.opening import node_launcher

    return node_launcher(settings)


def _keys_of(settings: Settings) -> "WatchedKeyFile | None":
    if settings.api_keys is None:
        return None
    from server.keys.watch import WatchedKeyFile

    return WatchedKeyFile(settings.api_keys, settings.tenants)


def _fail(problem: object) -> int:
    print(f"headrace: {problem}", file=sys.stderr)
    return EXIT_FAILED


def configure_logging(level: str, form: LogFormat = "text") -> None:
    """Lines on stderr: time, level, logger, message. The web server's own chatter starts at warnings."""
    configure_lines(level, form, "server", "%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLevelName(level.upper())))
    logging.getLogger("headrace.access").setLevel(logging.INFO)  # --access-log asks for it, whatever the level


def _refusal(engine: Incarnation) -> str | None:
    """Why the engine refuses the model, if it does so on reading the headers, which it reads before anything else.

    That an architecture is not implemented says more than that its tokenizer is odd.
    """
    seen: list[Event] = []
    until = time.monotonic() + _HEADERS_SECONDS
    while not seen and time.monotonic() < until:
        ended = engine.process.exit_code is not None
        engine.wire.receive_waiting(seen.append)
        if ended:
            break
        time.sleep(0.01)
    return next((event.error for event in seen if isinstance(event, Failed)), None)
