"""Settings from their four sources: flag > environment > YAML file > default, each value with its origin.

    load(flags, environ, file) -> LoadedSettings(settings, origins)

Every problem of every source is found before anything is reported, so that one start shows the operator all of them.
"""

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from configs.knob import PREFIX, Knob, knobs
from configs.needs import Contradiction
from configs.settings import RIVALS, Settings

PRESETS = Path(__file__).parent / "presets"
CONFIG_VARIABLE = PREFIX + "CONFIG"
# What Kubernetes puts into every pod beside a service named "headrace".
_SERVICE_LINK = re.compile(PREFIX + r"(SERVICE_HOST|SERVICE_PORT\w*|PORT_\d+_(TCP|UDP)\w*)")


class ConfigError(ValueError):
    """The settings cannot be used. The text has one line for each problem: knob, origin, value, what is accepted."""


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Valid settings, and where each field's value came from, by name: `flag --port`, `default`, ..."""

    settings: Settings
    origins: dict[str, str]


def load(
    flags: Mapping[str, Any], environ: Mapping[str, str], file: str | Sequence[str] | None = None
) -> LoadedSettings:
    """Merge the sources and validate the result.

    Args:
        flags: values from the command line by field name, without those that were not given; texts are parsed here.
        environ: the environment; only `HEADRACE_*` is read.
        file: a YAML file or the name of a preset, or several, of which later ones outdo earlier ones; if None, the one in
            `HEADRACE_CONFIG`, if any.

    Raises:
        ConfigError: an unknown key or variable, an unreadable file, a value that the declaration refuses.
    """
    problems: list[str] = []
    values: dict[str, Any] = {}
    origins = dict.fromkeys(knobs(), "default")
    named = file or environ.get(CONFIG_VARIABLE) or ()
    for path in map(_find, [named] if isinstance(named, str) else named):
        read = _read_file(path, problems)
        _outdo(read, values, origins)
        for name, value in read.items():
            values[name], origins[name] = value, f"file {path}"
    read = _read_environment(environ, problems)
    _outdo(read, values, origins)
    for name, value in read.items():
        values[name], origins[name] = value, f"environment {knobs()[name].variable}"
    _outdo(flags, values, origins)
    for name, value in flags.items():
        values[name] = knobs()[name].parse(value) if isinstance(value, str) else value
        origins[name] = "argument MODEL" if name == "model" else f"flag {knobs()[name].flag}"
    settings = _validate(values, origins, problems)
    if problems or settings is None:
        raise ConfigError("\n".join(problems))
    return LoadedSettings(settings, origins)


def _outdo(stronger: Iterable[str], values: dict[str, Any], origins: dict[str, str]) -> None:
    """Take out what weaker sources say by another name than the stronger one."""
    for rival in (rival for name in stronger for rival in RIVALS.get(name, ())):
        if rival in values:
            del values[rival]
            origins[rival] = "default"


def render(loaded: LoadedSettings) -> str:
    """The settings as YAML, each line with its origin as a comment. Secrets are masked.

    The mask is an undefined YAML alias: the text fed back as a file is refused instead of opening the server or
    setting the mask as a key.
    """
    lines: list[tuple[str, str]] = []
    for name, knob in knobs().items():
        value = getattr(loaded.settings, name)
        shown = "*masked" if knob.secret and value else json.dumps(value, ensure_ascii=False)
        lines.append((f"{name}: {shown}", loaded.origins[name]))
    width = max(len(left) for left, _ in lines)
    return "\n".join(f"{left:{width}}  # {origin}" for left, origin in lines)


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean X?` if a known name is near, else nothing."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {match[0]}?" if match else ""


def _find(named: str) -> Path:
    """A path as given, or else a preset by its bare name."""
    preset = PRESETS / f"{named}.yaml"
    if not Path(named).exists() and re.fullmatch(r"[\w-]+", named) and preset.is_file():
        return preset
    return Path(named)


def _read_file(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        presets = ", ".join(sorted(preset.stem for preset in PRESETS.glob("*.yaml")))
        problems.append(f"{path}: no such file, and no preset of that name; presets: {presets}")
        return {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problems.append(f"{path}: cannot be read as YAML: {_without_content(error)}")
        return {}
    if content is None:
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path}: must hold `knob: value` lines, but holds a {type(content).__name__}")
        return {}
    known: dict[str, Any] = {}
    for key, value in content.items():
        if key not in knobs():
            problems.append(f"{path}: unknown key {key!r}.{nearest(str(key), knobs())}")
            continue
        many = knobs()[key].many
        known[key] = [value] if many and isinstance(value, str) else value
    return known


def _without_content(error: Exception) -> str:
    """What is wrong and where, without what YAML's message quotes of the file: it may hold keys."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return error.strerror or type(error).__name__ if isinstance(error, OSError) else type(error).__name__
    problem = re.sub(r"'.*'|\".*\"", "..", getattr(error, "problem", None) or type(error).__name__)
    return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"


def _read_environment(environ: Mapping[str, str], problems: list[str]) -> dict[str, Any]:
    variables = {knob.variable: knob for knob in knobs().values()}
    known: dict[str, Any] = {}
    for variable in sorted(environ):
        if variable in variables:
            knob = variables[variable]
            known[knob.name] = knob.parse(environ[variable])
        elif _SERVICE_LINK.fullmatch(variable):
            problems.append(
                f"{variable}: set by Kubernetes for a service named headrace, and taken for a setting. Set "
                "`enableServiceLinks: false` on the pod, or name the service differently."
            )
        elif variable.startswith(PREFIX) and variable != CONFIG_VARIABLE:
            problems.append(f"{variable}: unknown variable.{nearest(variable, variables)}")
    return known


def _validate(values: dict[str, Any], origins: Mapping[str, str], problems: list[str]) -> Settings | None:
    refused = {
        name: [value] for name, value in values.items() if isinstance(value, bool) and knobs()[name].kind is not bool
    }
    settings, contradictions = None, list[Contradiction]()
    try:
        settings = Settings.model_validate(
            {name: value for name, value in values.items() if name not in refused and not _idle(name, value, origins)}
        )
    except ValidationError as error:
        for detail in error.errors(include_url=False):
            if detail["loc"]:
                refused.setdefault(str(detail["loc"][0]), []).append(detail["input"])
            else:
                contradictions += detail["ctx"]["error"].found
    for name in knobs():
        if name in refused:
            problems.append(_refusal(knobs()[name], refused[name], origins[name]))
    for contradiction in contradictions:
        places = ", ".join(f"{name} from {origins[name]}" for name in contradiction.names)
        problems.append(f"{contradiction.text} ({places})")
    return settings


def _idle(name: str, value: Any, origins: Mapping[str, str]) -> bool:
    """Whether this comes from a file that only repeats the default, as a printed configuration does: it asks for nothing."""
    return origins[name].startswith("file ") and bool(value == knobs()[name].default)


def _refusal(knob: Knob, values: Sequence[Any], origin: str) -> str:
    """Why what a source says is refused: the value, or those items of a list that are wrong."""
    shown = "the value (masked)" if knob.secret else ", ".join(map(repr, values))
    verb = "are" if len(values) > 1 and not knob.secret else "is"
    return f"{knob.name} (from {origin}): {shown} {verb} refused; it must be {knob.domain}"
