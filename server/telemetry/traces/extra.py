"""Whether what traces need is installed, if they are on. Asked before anything is started, so nothing is imported."""

from importlib.util import find_spec

from configs.settings import Settings

_NEEDED = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


def missing(settings: Settings) -> str | None:
    """A sentence about what traces need and is not installed; None if nothing is, or they are off."""
    by = settings.traced_by()
    if by is None or all(map(_installed, _NEEDED)):
        return None
    return f"{by} is set, but traces need OpenTelemetry: pip install 'headrace[tracing]', or unset {by}."


def _installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # a package above it is not there
        return False
