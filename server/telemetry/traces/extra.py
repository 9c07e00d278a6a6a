"""Whether traces are on, and whether what they need is installed. Asked before anything is started, so nothing is imported."""

import os
from collections.abc import Mapping
from importlib.util import find_spec

from configs.settings import Settings

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def switched_on_by(settings: Settings, environment: Mapping[str, str] = os.environ) -> str | None:
    """What asks for traces: the setting, or a variable of the standard; None if nothing does, or the standard's switch is off."""
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if settings.otlp_endpoint is not None:
        return "otlp_endpoint"
    return next((name for name in _ENDPOINTS if environment.get(name)), None)


def missing(settings: Settings) -> str | None:
    """A sentence about what traces need and is not installed; None if nothing is, or they are off."""
    by = switched_on_by(settings)
    if by is None or all(map(_installed, _NEEDED)):
        return None
    return f"{by} is set, but traces need OpenTelemetry: pip install 'headrace[tracing]', or unset {by}."


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is not there
        return False
