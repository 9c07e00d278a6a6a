"""Names, units, monotonic counters, and the page of docs."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_reader
from prometheus_client.parser import text_string_to_metric_families as plain_reader

from configs.settings import Settings
from scheduler.types.messages import AddRequest, EngineStats, FinishReason, Output, StartPhase, StepOutputs, TierStats
from scheduler.types.sampling_params import SamplingParams
from server.engines.client import EngineClient
from server.engines.supervision.incarnations import Incarnations
from server.errors import PoisonRequest
from server.telemetry.engine_stats import ENGINE_METRICS, TIER_METRICS
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics, page
from tests.server.engines.harness import ROOT, eventually, read, run, running
from tests.server.engines.scripted_engine import DIE, READY


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_the_page_of_docs_is_what_the_registry_says():
    assert (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8") == page() + "\n"


def test_every_field_of_the_engines_stats_is_a_metric():
    assert [*(metric.field for metric in ENGINE_METRICS), "tiers"] == [field.name for field in fields(EngineStats)]
    assert {metric.field for metric in TIER_METRICS} == {field.name for field in fields(TierStats)}


def test_names_are_prefixed_unique_and_carry_units():
    names = re.findall(r"^\| `(\w+)`", page(), re.MULTILINE)
    assert len(names) == len(set(names)) > 35
    units = r"(seconds|tokens|bytes|blocks|streams|total|info|fds|running|waiting|up|open|weight|role|keys)(_total)?$"
    prefixes = ("headrace_", "gen_ai_server_")  # the second is of OpenTelemetry's conventions
    assert [name for name in names if not name.startswith(prefixes) or not re.search(units, name)] == []
    assert all(not name.endswith("_total") for name in re.findall(r"^\| `(\w+)` \| gauge", page(), re.MULTILINE))


def test_engine_counters_go_on_over_restarts():
    metrics = Metrics()
    engine = metrics.engine("engine")
    for generated in (5, 9):
        engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(generation_tokens=generated, running=2)))
    engine.detached()
    assert value(metrics, "headrace_generation_tokens_total") == 9
    assert value(metrics, "headrace_sequences_running") == 0
    engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(generation_tokens=1)))
    engine.detached()
    engine.detached()
    engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(generation_tokens=2)))
    assert value(metrics, "headrace_generation_tokens_total") == 12


def test_counters_of_a_tier_go_on_over_restarts_and_its_gauges_do_not():
    metrics = Metrics()
    engine = metrics.engine("engine")
    engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(tiers={"host": TierStats(loaded=3, blocks=7)})))
    assert value(metrics, "headrace_kv_tier_blocks", tier="host") == 7
    assert value(metrics, "headrace_kv_tier_up", tier="host") == 1
    engine.detached()
    assert value(metrics, "headrace_kv_tier_loaded_blocks_total", tier="host") == 3
    assert value(metrics, "headrace_kv_tier_blocks", tier="host") == 0
    assert value(metrics, "headrace_kv_tier_up", tier="host") == 0
    stats = TierStats(loaded=2, load_copies=1)
    engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(tiers={"host": stats})))
    assert value(metrics, "headrace_kv_tier_loaded_blocks_total", tier="host") == 5
    assert value(metrics, "headrace_kv_tier_copies_total", tier="host", direction="load") == 1


def test_counters_stay_monotonic_over_a_real_restart():
    async def body():
        async with running() as rig:
            await read(rig.submit(max_tokens=4))
            assert rig.sample("headrace_generation_tokens_total") == 4
            assert rig.sample("headrace_engine_up") == 1
            with pytest.raises(PoisonRequest):
                await read(rig.submit(DIE))
            assert rig.sample("headrace_engine_up") == 0
            assert rig.sample("headrace_generation_tokens_total") == 4
            await eventually(lambda: rig.client.status.state == "ready")
            await read(rig.submit(max_tokens=2))
            assert rig.sample("headrace_generation_tokens_total") == 6
            assert rig.sample("headrace_engine_restarts_total") == 2
            assert rig.sample("headrace_steps_total") == 6
            assert rig.sample("headrace_startup_phase_seconds", phase="load weights") == 0.25

    run(body)


def test_both_processes_are_measured_by_their_own_pid():
    async def body():
        async with running() as rig:
            for process in ("server", "engine"):
                assert rig.sample(f"headrace_{process}_process_resident_memory_bytes") > 2**20
                assert rig.sample(f"headrace_{process}_process_cpu_seconds_total") >= 0
            status = Path(f"/proc/{rig.processes[0].pid}/stat").read_text().rpartition(")")[2].split()
            assert rig.sample("headrace_engine_process_virtual_memory_bytes") == float(status[20])

    run(body)


def test_one_lifetime_feeds_the_histograms():
    metrics = Metrics()
    lifetime = Lifetime(
        received=10.0, scheduled=10.5, first_token=11.0, last_token=13.0, finished=13.0,
        prompt_tokens=7, completion_tokens=5, reason=FinishReason.STOP,
    )  # fmt: skip
    metrics.sequence_ended(lifetime)
    sums = {
        "queue_time_seconds": 0.5,
        "time_to_first_token_seconds": 1.0,
        "time_per_output_token_seconds": 0.5,
        "request_seconds": 3.0,
        "request_prompt_tokens": 7,
        "request_generation_tokens": 5,
    }
    assert {name: value(metrics, f"headrace_{name}_sum") for name in sums} == sums
    assert value(metrics, "headrace_sequences_finished_total", reason="stop") == 1
    assert value(metrics, "headrace_queue_time_seconds_bucket", le="0.001") == 0


def test_every_latency_has_buckets_from_a_millisecond():
    metrics = Metrics()
    metrics.engine("engine")
    latencies = [
        family
        for family in metrics.registry.collect()
        if family.type == "histogram" and family.name.endswith("_seconds") and "_tenant_" not in family.name
        if not family.name.startswith("gen_ai_")  # whose bounds are the conventions'
    ]
    assert len(latencies) == 7
    for family in latencies:
        bounds = [sample.labels["le"] for sample in family.samples if sample.name.endswith("_bucket")]
        assert bounds[0] == "0.001" and float(bounds[-2]) >= 300, family.name


def test_a_sequence_without_tokens_says_nothing_of_latency():
    metrics = Metrics()
    metrics.sequence_ended(Lifetime(received=10.0, finished=11.0, reason=FinishReason.ABORT))
    for name in ("queue_time_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds"):
        assert value(metrics, f"headrace_{name}_count") == 0


def test_gaps_are_measured_between_arrivals():
    metrics = Metrics()
    client = EngineClient("engine", Settings(), metrics)
    incarnations = Incarnations(client, metrics)
    incarnations.handle(StartPhase(name="import", seconds=1.0))
    incarnations.handle(READY)
    request = AddRequest(request_id="a", prompt_ids=[1], sampling=SamplingParams(max_tokens=3))
    stream = client.submit(request, Lifetime(received=0.0))
    for last in (None, None, FinishReason.LENGTH):
        output = Output(request_id="a", token_ids=[1], finish_reason=last)
        incarnations.handle(StepOutputs(outputs=[output], stats=EngineStats(), step_tokens=1, step_seconds=0.25))
    incarnations.handle(StepOutputs(outputs=[], stats=EngineStats()))  # a report is no step
    assert value(metrics, "headrace_inter_token_latency_seconds_count") == 2
    assert value(metrics, "headrace_step_seconds_sum") == 0.75
    assert value(metrics, "headrace_step_tokens_count") == 3
    stream.close()


def told(metrics: Metrics) -> set[str]:
    text = metrics.render("")[0].decode()
    return {
        line.rpartition(" ")[0] for line in text.splitlines() if "_process_" not in line and not line.startswith("#")
    }


def fed(*names: str) -> Metrics:
    metrics = Metrics()
    for name in names:
        engine = metrics.engine(name)
        engine.phase_ended(StartPhase(name="load", seconds=1.0))
        engine.step_ended(StepOutputs(outputs=[], stats=EngineStats(tiers={"host": TierStats()}), step_tokens=1))
        engine.ready(READY, 2.0)
    return metrics


def test_an_only_engines_series_bear_no_name_and_of_several_each_bears_its_own():
    alone, several = told(fed("a")), told(fed("a", "b"))
    assert not [series for series in alone if "engine=" in series]
    of_server = alone & several
    assert 'headrace_sequences_finished_total{reason="stop"}' in of_server
    assert "headrace_steps_total" in alone - several
    for name in ("a", "b"):
        label = f'engine="{name}"'
        bare = {series.replace(f"{{{label}}}", "").replace(f"{label},", "") for series in several if label in series}
        assert bare == alone - of_server


def test_each_family_is_declared_once_however_many_engines_there_are():
    lines = fed("a", "b", "c").render("")[0].decode().splitlines()
    types = [line for line in lines if line.startswith("# TYPE")]
    assert len(types) == len(set(types)) > 35


@pytest.mark.parametrize("engines", [["engine"], ["engine-0", "engine-1"]])
def test_both_formats_are_read_by_a_strict_reader_and_say_the_same(engines):
    """A histogram's series in order, a family in one piece, units and suffixes where they belong, no series twice."""
    metrics = fed(*engines)
    metrics.sequence_ended(Lifetime(received=10.0, first_token=11.0, finished=12.0, reason=FinishReason.STOP))
    plain, open_metrics = (metrics.render(accept) for accept in ("", "application/openmetrics-text"))
    assert (plain[1].partition(";")[0], open_metrics[1].partition(";")[0]) == (
        "text/plain",
        "application/openmetrics-text",
    )
    one = samples(plain_reader(plain[0].decode()))
    other = samples(open_metrics_reader(open_metrics[0].decode()))
    assert one == other and len(one) > 300


def samples(families) -> dict[tuple[str, frozenset], float]:
    """By series, of what does not change from one reading to the next."""
    every = [sample for family in families for sample in family.samples if "_process_" not in sample.name]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in every}
    assert len(found) == len(every)
    return found


def test_what_clients_send_makes_no_series():
    """Codes, reasons, tenants and tiers that nobody declared have no series; those of the server have theirs from the start."""
    before = fed("a")
    after = fed("a")
    for number in range(20):
        after.sequence_begun(f"stranger-{number}")
        after.sequence_ended(Lifetime(received=0.0, finished=1.0, reason=FinishReason.ABORT), f"stranger-{number}")
        after.request_failed("invalid_value", f"stranger-{number}")
    assert told(after) == told(before)


def test_an_engine_that_restarts_leaves_the_others_counters_alone():
    metrics = fed("a", "b")
    metrics.engine("a").detached()
    metrics.engine("a").restarted()
    assert [value(metrics, "headrace_engine_up", engine=name) for name in ("a", "b")] == [0, 1]
    assert [value(metrics, "headrace_engine_restarts_total", engine=name) for name in ("a", "b")] == [1, 0]


def test_gaps_between_tokens_count_for_each_sequence():
    metrics = Metrics()
    client = EngineClient("engine", Settings(), metrics)
    client.status.became_ready(READY, now=0.0)

    async def body():
        for name in "abc":
            request = AddRequest(request_id=name, prompt_ids=[5], sampling=SamplingParams(max_tokens=9))
            client.submit(request, Lifetime(received=0.0))
        for now, names in [(1.0, "ab"), (2.0, "c")]:
            firsts = [Output(request_id=name, token_ids=[7]) for name in names]
            client.step_ended(StepOutputs(outputs=firsts, stats=EngineStats()), now)
        for now, names in [(3.0, "acb"), (3.5, "abc"), (4.5, "gone")]:
            client.step_ended(StepOutputs(outputs=[], tokens=dict.fromkeys(names, 7), stats=EngineStats()), now)

    run(body)
    assert value(metrics, "headrace_inter_token_latency_seconds_count") == 6
    assert value(metrics, "headrace_inter_token_latency_seconds_sum") == 2 + 1 + 2 + 3 * 0.5
    assert [stream.generated_ids for stream in client.streams.values()] == [[7, 7, 7]] * 3
    assert client.status.last_token == 3.5
