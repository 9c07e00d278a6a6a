"""A whole server process over the scripted engine: `python serve_scripted.py START [knob=value ...]`, prints its pids."""

import sys
import time

from configs.model.source import resolve_model
from configs.settings import Settings
from server.engines.launch import Incarnation, launch
from server.listen import listen
from server.run import configure_logging
from server.serving import Serving
from tests.server.engines.harness import arguments


class ScriptedLauncher:
    keepers = None

    def __init__(self, start: str) -> None:
        self._line = arguments("--start", start)

    def launch(self, name: str) -> Incarnation:
        return launch(self._line)

    def close(self) -> None:
        pass


def main(start: str, *knobs: str) -> int:
    values = dict(knob.split("=", 1) for knob in knobs)
    settings = Settings.model_validate(values, strict=False)
    configure_logging(settings.log_level)
    listeners = listen("127.0.0.1", 0)
    launcher = ScriptedLauncher(start)
    engines = {name: launcher.launch(name) for name in settings.engine_names}
    first = next(iter(engines.values()))
    print(f"engine {first.process.pid} port {listeners.port}", flush=True)
    return Serving(settings, resolve_model(None), listeners, launcher, started=time.monotonic()).run(engines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
