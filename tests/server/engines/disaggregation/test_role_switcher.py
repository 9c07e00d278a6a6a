"""Role switching in a server: what clients see of requests decides, and the log and the metrics say what was done."""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from configs.settings import Settings
from scheduler.router.role_switching import LEAST, PhaseBounds, RoleSwitching
from scheduler.router.view import Role
from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.sampling_params import SamplingParams
from server.engines.canary import CanaryLifetime
from server.engines.disaggregation import role_switcher
from server.engines.disaggregation.role_switcher import RoleSwitcher
from server.stream.output_stream import OutputStream
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics


@dataclass
class Engine:
    name: str
    role: Role
    status: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(usable=True))
    streams: dict[str, OutputStream] = field(default_factory=dict)


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def engines(metrics):
    made = [Engine(f"engine-{index}", role) for index, role in enumerate([Role.PREFILL, Role.DECODE, Role.DECODE])]
    for engine in made:
        metrics.engine(engine.name)
    return made


@pytest.fixture
def switcher(engines, metrics):
    return RoleSwitcher(RoleSwitching(PhaseBounds(ttft=1.0, tpot=0.1)), engines, metrics)


def switches(metrics: Metrics) -> dict[tuple[str, str, str], float]:
    samples = (sample for family in metrics.registry.collect() for sample in family.samples)
    found = [sample for sample in samples if sample.name == "headrace_role_switches_total"]
    labels = ("engine", "role", "behind")
    return {tuple(sample.labels[name] for name in labels): sample.value for sample in found if sample.value}


def waiting(received: float, number: int, lifetime: type[Lifetime] = Lifetime) -> OutputStream:
    request = AddRequest(request_id=f"r-{number}", prompt_ids=[1], sampling=SamplingParams(max_tokens=9))
    return OutputStream(request, lifetime(received=received), lambda _: None)


def test_requests_that_ended_late_switch_a_role(switcher, engines, metrics, caplog):
    caplog.set_level(logging.INFO, "headrace.engine")
    for number in range(LEAST):
        ended = Lifetime(received=10.0, first_token=12.0, last_token=12.1, finished=12.1, reason=FinishReason.STOP)
        ended.completion_tokens = 5
        metrics.sequence_ended(ended)
        if number == 0:
            switcher.look(12.5)
            assert [engine.role for engine in engines] == [Role.PREFILL, Role.DECODE, Role.DECODE]
    switcher.look(12.5)
    assert [engine.role for engine in engines] == [Role.PREFILL, Role.PREFILL, Role.DECODE]
    assert switches(metrics) == {("engine-1", "prefill", "prefill"): 1}
    assert [record.getMessage() for record in caplog.records] == [
        "engine-1: decode -> prefill, as prefill is behind: 0% of the first tokens and 100% of the tokens after them come in time"
    ]


def test_requests_that_wait_count_and_what_is_open_there_is_its_drain(switcher, engines):
    engines[0].streams = {f"r-{number}": waiting(10.0, number) for number in range(LEAST)}
    engines[1].streams = {"old": waiting(10.5, 99)}
    switcher.look(10.9)
    assert engines[2].role is Role.DECODE
    switcher.look(11.6)
    assert [engine.role for engine in engines] == [Role.PREFILL, Role.DECODE, Role.PREFILL], "the idle one"


def test_the_canary_counts_for_neither_phase(switcher, engines):
    engines[0].streams = {f"r-{number}": waiting(10.0, number, CanaryLifetime) for number in range(LEAST)}
    switcher.look(20.0)
    assert [engine.role for engine in engines] == [Role.PREFILL, Role.DECODE, Role.DECODE]


def test_engines_that_take_nothing_are_left_alone(switcher, engines):
    engines[0].streams = {f"r-{number}": waiting(10.0, number) for number in range(LEAST)}
    engines[1].status.usable = False
    switcher.look(20.0)
    assert [engine.role for engine in engines] == [Role.PREFILL, Role.DECODE, Role.DECODE]


def test_it_looks_again_and_again(switcher, engines, monkeypatch):
    monkeypatch.setattr(role_switcher, "LOOK_SECONDS", 0.001)
    engines[0].streams = {f"r-{number}": waiting(time.monotonic() - 5.0, number) for number in range(LEAST)}

    async def run() -> None:
        task = asyncio.create_task(switcher.run())
        while engines[1].role is Role.DECODE:
            await asyncio.sleep(0.001)
        task.cancel()

    asyncio.run(asyncio.wait_for(run(), 30))


ROLES = {"roles": ["prefill:1", "decode:2"], "kv_host_gib": 1}


def test_settings_say_whether_roles_switch():
    assert Settings(**ROLES).phase_slos is None
    assert Settings(**ROLES, decode_slo_ms=50).phase_slos is None
    both = {"ttft_slo_ms": 500, "decode_slo_ms": 50}
    assert Settings(**ROLES, **both).phase_slos == (0.5, 0.05)
    assert Settings(**ROLES, decode_slo_ms=50, role_switching="off").phase_slos is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"ttft_slo_ms": 500}, "set roles prefill:1,decode:1"),
        ({"engines": 2, "role_switching": "off"}, "set roles prefill:1,decode:1"),
        (ROLES | {"ttft_slo_ms": 500}, "set decode_slo_ms"),
        (ROLES | {"ttft_slo_ms": 500, "decode_slo_ms": 50, "role_switching": "off"}, "leave role_switching at auto"),
    ],
)
def test_settings_that_switch_nothing_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        Settings(**settings)
