"""What a server's own metrics say of it: how it was set up, and how long it took, by its own clock.

Known are headrace's, vLLM's and SGLang's names. A setting that no metric has must be given. Times are sums since the server
started, so what a run took is their change; it is only used if the server has counted the run's requests and no others.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from loadtest.report.records import LoadRun

Samples = Mapping[str, float]  # by name and labels as written

_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
_STEPS = "headrace_step_seconds"
_GUESSES = "headrace_speculation_accepted_tokens_total"
_OTHER_GUESSES = "vllm:spec_decode_num_accepted_tokens_total"
_PREFILLS = "vllm:request_prefill_time_seconds"  # from its start in a step to the first token
# Metrics with settings as labels: of which name, and what its labels are called here.
_INFOS = {
    "vllm:cache_config_info": {
        "block_size": "block_size",
        "num_gpu_blocks": "kv_blocks",
        "enable_prefix_caching": "prefix_caching",
    },
    "sglang:cache_config_info": {"page_size": "block_size", "num_pages": "kv_blocks"},
}
_GAUGES = {"headrace_kv_pool_blocks": "kv_blocks"}


@dataclass(frozen=True, slots=True)
class ServerSums:
    """Seconds of a run by the server's clock; None: not known.

    Attributes:
        steps: of all steps.
        prefills: from the start of each request to its first token, over all.
    """

    steps: float | None = None
    prefills: float | None = None


def settings_of(samples: Samples) -> dict[str, int | bool]:
    """`kv_blocks`, `block_size` and `prefix_caching`, as far as the metrics say.

    Raises:
        ValueError: several engines are behind the address; the steps of one are what is fitted.
    """
    found: dict[str, int | bool] = {}
    for name, labels in _INFOS.items():
        for series in _series(samples, name):
            found |= _read(dict(_LABEL.findall(series)), labels)
    for name, setting in _GAUGES.items():
        if series_of := _series(samples, name):
            found[setting] = int(samples[series_of[0]])
    several = [name for name in (*_INFOS, *_GAUGES) if len(_series(samples, name)) > 1]
    if several:
        raise ValueError(
            f"{several[0]} has {len(_series(samples, several[0]))} series: calibrate with one engine at a time"
        )
    return found


def _read(values: Mapping[str, str], labels: Mapping[str, str]) -> dict[str, int | bool]:
    found: dict[str, int | bool] = {}
    for label, setting in labels.items():
        value = values.get(label, "").lower()
        if value in ("true", "false"):
            found[setting] = value == "true"
        elif value.isdecimal() and int(value) > 0:
            found[setting] = int(value)
    return found


def sums_of(run: LoadRun) -> ServerSums:
    """What the server says that the run took, if it was scraped."""
    before, after = run.scraped.get("before", {}), run.scraped.get("after", {})
    answered = sum(record.ok for record in run.records)
    prefills = _change(before, after, f"{_PREFILLS}_sum")
    if _change(before, after, f"{_PREFILLS}_count") != answered:
        prefills = None
    return ServerSums(_change(before, after, f"{_STEPS}_sum"), prefills)


def guesses_of(run: LoadRun) -> float:
    """How many guessed tokens the server says were right in the run; 0 if it says nothing of guesses."""
    return _change(run.scraped.get("before", {}), run.scraped.get("after", {}), _GUESSES) or 0.0


def guesses_otherwise(run: LoadRun) -> bool:
    """Whether the server guessed in a way that is not simulated: by a draft model, say, which takes time of its own."""
    return bool(_change(run.scraped.get("before", {}), run.scraped.get("after", {}), _OTHER_GUESSES))


def _change(before: Samples, after: Samples, name: str) -> float | None:
    """Of a counter, over all its series; None if there is none."""
    series = _series(after, name)
    return sum(after[each] - before.get(each, 0.0) for each in series) if series else None


def _series(samples: Samples, name: str) -> list[str]:
    return [each for each in samples if each == name or each.startswith(f"{name}{{")]
