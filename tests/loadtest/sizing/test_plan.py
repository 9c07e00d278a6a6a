"""The cheapest set: that it is one, that the simulator says the same, and that what is said can be checked and started."""

import json
import shlex
from dataclasses import replace
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.loader import load
from configs.settings import Settings
from loadtest.report.records import LoadRun, Objective
from loadtest.simulate import cli as simulator
from loadtest.simulate.cluster import Machines, ServerShape
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import load_hardware, load_model
from loadtest.sizing import cli
from loadtest.sizing.answer import Buyer, SizingAnswer, price
from loadtest.sizing.candidates import FleetCandidates
from loadtest.sizing.fleet import Fleet, FleetKind, Tuning, kinds_of
from loadtest.sizing.load import Condition, busiest
from loadtest.sizing.page import render
from loadtest.sizing.pool import TrialPool
from loadtest.sizing.trial import SizingBench, SizingTrial, try_fleet
from loadtest.sizing.tunings import Lengths, decode_seconds, prefill_seconds, tunings
from loadtest.sizing.words import AnswerView, sentences
from loadtest.workload.plan import Planned
from scheduler.router.view import Role
from server.commands import serve_parser

H200, CPU = load_hardware("h200"), load_hardware("cpu-2core")
LLAMA, SMOLLM = load_model("llama-3-8b"), load_model("smollm2-135m")


def planned(rate: float, prompt: int, output: int, many: int, seed: int = 1) -> list[Planned]:
    random, at = Random(seed), 0.0
    found = []
    for index in range(many):
        at += random.expovariate(rate)
        found.append(Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output))
    return found


def no_machines(_: CostModel) -> Machines:
    return Machines()


def bench(requests: list[Planned], objective: Objective, *, stretch: int = 60, goal: float = 0.95) -> SizingBench:
    return SizingBench(
        requests=requests,
        stretch=busiest(requests, stretch),
        warm_up=0.0,
        cool_down=0.0,
        model=LLAMA,
        server=ServerShape(block_size=256),
        router="round-robin",
        objectives={"default": objective},
        goal=goal,
        machines=no_machines,
        bandwidth=None,
        latency=0.0005,
    )


def answered(
    made: SizingBench, kinds: list[FleetKind], *, most: int = 16
) -> tuple[SizingAnswer | None, Buyer, TrialPool]:
    pool = TrialPool(made)
    buyer = Buyer(pool, FleetCandidates(made, [2048]), kinds, most=most, precision=2.0)
    return buyer.answer(), buyer, pool


HARD = bench(planned(60.0, 1500, 8, 120), Objective(ttft=0.3, tpot=0.05))


def test_the_answer_keeps_the_goal_and_no_smaller_set_does():
    kinds = list(kinds_of(H200, LLAMA, [1, 2], ["auto"], split=False, block_size=256))
    answer, _, pool = answered(HARD, kinds)
    assert answer is not None and answer.cheaper is not None
    fleet = answer.best.trial.fleet
    assert fleet.devices > 1 and not answer.best.stopped and answer.best.attainment >= HARD.goal
    candidates = FleetCandidates(HARD, [2048])
    for kind in kinds:
        engines = (fleet.devices - 1) // kind.devices
        for smaller in candidates.fleets(kind, engines) if engines else []:
            assert try_fleet(HARD, SizingTrial(smaller, whole=True, to_the_end=True)).attainment < HARD.goal, smaller
    assert price(answer.cheaper.trial.fleet) < answer.price and answer.cheaper.attainment < HARD.goal
    assert answer.headroom.held >= 1.0 and (answer.headroom.failed is None or not pool.good(answer.headroom.failed))
    for each in answer.others:
        assert each.enough is not None and each.enough.devices >= fleet.devices


def test_what_is_given_up_would_not_have_reached_the_goal():
    kind = FleetKind(H200)
    given_up = 0
    for factor in (0.5, 1.0, 1.5, 2.5, 4.0):
        trial = SizingTrial(Fleet(kind, (Role.MIXED,), Tuning(2048, 64)), Condition(load=factor))
        early, whole = try_fleet(HARD, trial), try_fleet(HARD, replace(trial, to_the_end=True))
        given_up += early.stopped
        assert not early.stopped or whole.attainment < HARD.goal
        assert early.attainment >= whole.attainment and early.arrived <= whole.arrived
        assert early.stopped or replace(early, trial=whole.trial) == whole
    assert 0 < given_up < 5


def test_a_device_that_costs_less_is_taken_only_where_fewer_dollars_are_enough():
    half = replace(
        H200,
        name="half",
        operations_per_second={name: rate / 2 for name, rate in H200.operations_per_second.items()},
        attention_operations_per_second=H200.attention_operations_per_second / 2,
    )
    found = {}
    for dollars in (1.0, 3.9):
        kinds = [FleetKind(replace(H200, price_per_hour=4.0)), FleetKind(replace(half, price_per_hour=dollars))]
        answer, _, _ = answered(HARD, kinds)
        assert answer is not None
        found[dollars] = answer.best.trial.fleet.kind.hardware.name
    assert found == {1.0: "half", 3.9: "h200"}


def test_what_no_number_of_devices_keeps_is_said_without_a_simulation():
    answer, buyer, pool = answered(replace(HARD, objectives={"default": Objective(ttft=0.01)}), [FleetKind(H200)])
    assert answer is None and pool.outcomes == []
    assert "an engine for themselves only 0.0 %" in buyer.verdicts[0].why


def test_more_devices_than_there_may_be_are_no_answer():
    answer, buyer, _ = answered(HARD, [FleetKind(H200)], most=1)
    assert answer is None and buyer.verdicts[0].why == "not with 1"


@pytest.mark.parametrize(("hardware", "model", "tokens"), [(H200, LLAMA, 2048), (CPU, SMOLLM, 64)])
def test_settings_fit_the_device(hardware, model, tokens):
    cost, lengths = CostModel(hardware, model), Lengths(1000, 200)
    bound = Objective(ttft=0.5, tpot=0.05)
    kv_tokens = cost.kv_blocks(32) * 32
    found = tunings(cost, [bound], lengths, kv_tokens)
    assert found[0].max_step_tokens == tokens and prefill_seconds(cost, tokens) <= 0.05 < prefill_seconds(
        cost, 2 * tokens
    )
    seats = found[0].max_running
    assert seats * 1200 <= kv_tokens and decode_seconds(cost, seats, lengths) <= 0.05
    assert {each.max_step_tokens for each in found} == {tokens // 2, tokens, 2 * tokens}
    assert tunings(cost, [bound], lengths, kv_tokens, budgets=[96], running=[7]) == [Tuning(96, 7)]
    assert tunings(cost, [Objective(e2e=9.0)], lengths, kv_tokens)[0].max_step_tokens >= tokens


@given(
    st.lists(st.tuples(st.floats(0.01, 5), st.integers(1, 900), st.integers(1, 90)), min_size=1, max_size=30),
    st.integers(1, 35),
)
def test_the_busiest_stretch_is_the_one_with_the_most_work_a_second(rows, many):
    at, requests = 0.0, []
    for index, (gap, prompt, output) in enumerate(rows):
        at += gap
        requests.append(Planned(index=index, intended=at, prompt_tokens=prompt, output_tokens=output))
    found = busiest(requests, many)
    assert len(found) == min(many, len(requests)) and found[0] in requests

    def rate(part):
        work = sum(each.prompt_tokens + 4 * each.output_tokens for each in part)
        return work / max(part[-1].intended - part[0].intended, 1e-9)

    if many < len(requests):
        assert rate(found) == pytest.approx(max(rate(requests[i : i + many]) for i in range(len(requests) - many + 1)))


@given(st.integers(1, 700), st.integers(1, 64), st.floats(1.0, 3.0), st.floats(0.5, 4.0))
def test_other_loads_are_faster_or_longer_and_share_what_they_shared(prompt, block, factor, load):
    blocks = tuple(range(-(-prompt // block)))
    request = Planned(index=0, intended=7.0, prompt_tokens=prompt, output_tokens=3, blocks=blocks, block_tokens=block)
    late = replace(request, index=1, intended=9.0, blocks=(), block_tokens=0)
    first, second = Condition(load=load, prompts=factor).apply([request, late])
    assert (first.intended, second.intended) == (0.0, pytest.approx(2.0 / load))
    assert (len(blocks) - 1) * first.block_tokens < first.prompt_tokens <= len(blocks) * first.block_tokens
    assert second.prompt_tokens == round(prompt * factor) and first.output_tokens == 3
    text = replace(late, prompt="four" * 10, prompt_tokens=0)
    assert Condition(prompts=2.0).apply([text])[0].prompt_tokens == 20


def test_kv_in_eight_bits_is_bought_only_where_it_is_cheaper():
    kinds = list(kinds_of(H200, LLAMA, [1], ["auto", "fp8"], split=False, block_size=256))
    answer, _, _ = answered(HARD, kinds[::-1])
    assert answer is not None and answer.best.trial.fleet.kind.gpu_kv == "auto"
    small = replace(H200, memory_bytes=20.0e9)  # room for 15,000 tokens in 16 bits
    kinds = list(kinds_of(small, LLAMA, [1], ["auto", "fp8"], split=False, block_size=256))
    made = bench(planned(12.0, 1500, 100, 80), Objective(ttft=0.3, tpot=0.05))
    answer, _, _ = answered(made, kinds)
    assert answer is not None and answer.best.trial.fleet.kind.gpu_kv == "fp8" and answer.best.trial.fleet.devices == 1
    assert answer.cheaper is None


@pytest.mark.parametrize("objective", [Objective(ttft=1.0, tpot=0.02), Objective(ttft=1.0), Objective(e2e=9.0)])
def test_a_server_and_the_simulator_take_the_flags_of_every_set(objective):
    made = replace(HARD, objectives={"default": objective})
    candidates = FleetCandidates(made)
    for kind in kinds_of(H200, LLAMA, [1, 2], ["auto", "fp8"], split=True, block_size=256):
        fleet = candidates.fleets(kind, 3)[-1]
        view = AnswerView(None, made, [], {"h200": "h200"}, ["trace", "--model", "llama-3-8b"])  # type: ignore[arg-type]
        given = vars(serve_parser().parse_args(shlex.split(view.serve(fleet))[2:]))
        settings = load({name: value for name, value in given.items() if name in Settings.model_fields}, {}).settings
        assert settings.engines == 3 and settings.tensor_parallel == kind.devices and settings.gpu_kv == kind.gpu_kv
        told = simulator._parser().parse_args(shlex.split(view.simulate(fleet))[3:])
        assert told.devices == kind.devices and told.gpu_kv == kind.gpu_kv
        assert (told.roles is not None) == kind.split and (kind.split or told.replicas == 3)


LOAD = ["tests/loadtest/data/azure_conv.csv", "--speed", "400", "--max-output", "6", "--slo", "ttft=120ms,tpot=50ms"]
SERVED = ["--model", "llama-3-8b", "--hardware", "h200", "--price", "4", "--tensor-parallel", "1", "--gpu-kv", "auto"]
COMMAND = [
    *LOAD,
    *SERVED,
    "--block-size",
    "256",
    "--jobs",
    "1",
    "--router",
    "round-robin",
    "--max-step-tokens",
    "2048",
    "--precision",
    "0.5",
    "--attainment",
    "90%",
]


def test_every_kind_of_set_is_simulated_as_the_command_simulates_it(monkeypatch, capsys):
    runs: list[LoadRun] = []
    monkeypatch.setattr(simulator.RunReport, "print_table", lambda report: runs.append(report.run))
    arguments = [*LOAD, "--model", "llama-3-8b", "--block-size", "256"]
    options = cli._parser().parse_args([*arguments, "--hardware", "h200", "--link-bandwidth", "nvlink4"])
    options.hardware = ["h200"]
    made = cli._bench(options)
    for kind in kinds_of(H200, LLAMA, [1, 2], ["auto", "fp8"], split=True, block_size=256):
        fleet = FleetCandidates(made).fleets(kind, 2)[0]
        view = AnswerView(None, made, [], {"h200": "h200"}, [*arguments, "--link-bandwidth", "nvlink4"])  # type: ignore[arg-type]
        assert simulator.main(shlex.split(view.simulate(fleet))[3:]) == 0
        run, ours = runs.pop(), try_fleet(made, SizingTrial(fleet, whole=True, to_the_end=True))
        firsts = [record.ttft for record in run.records if record.ttft is not None]
        assert ours.ttft == pytest.approx((float(np.percentile(firsts, 50)), float(np.percentile(firsts, 99))))
        assert ours.met == sum(bound.met_by(record) for record in run.records if (bound := run.objective(record)))


def test_the_command_says_what_the_simulator_says(tmp_path, capsys, monkeypatch):
    runs: list[LoadRun] = []
    monkeypatch.setattr(simulator.RunReport, "write", lambda report, _: runs.append(report.run) or [])
    assert cli.main([*COMMAND, "--output", str(tmp_path / "plan"), "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (
        content == json.loads((tmp_path / "plan" / "plan.json").read_text())
        and content["schema"] == "headrace.sizing/1"
    )
    assert content["price_per_hour"] == 4 * content["answer"]["devices"] > 4
    for place, each in enumerate((content["answer"], content["next_cheaper"])):
        argv = shlex.split(each["simulate"])
        assert argv[:3] == ["headrace", "loadtest", "simulate"]
        assert simulator.main([*argv[3:], "--output", str(tmp_path / str(place))]) == 0
        run = runs.pop()
        judged = [(record, bound) for record in run.records if (bound := run.objective(record))]
        assert (each["met"], each["judged"]) == (sum(bound.met_by(record) for record, bound in judged), len(judged))
        assert (each["attainment"] >= 0.9) is (place == 0)
    page = (tmp_path / "plan" / "plan.html").read_text()
    assert 'src="http' not in page and "href=" not in page and page.count("data:image/png") == 7
    assert cli.main([*COMMAND, "--output", str(tmp_path / "plan")]) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--slo", ""], "give --slo"),
        (["--attainment", "0"], "--attainment 0 is kept by any set"),
        (["--hardware", "h200,h100", "--price", "3"], "names several: write NAME=3"),
        (["--price", "l40s=3"], "--price names l40s"),
        (["--hardware", "h200,cpu-2core", "--price", "h200=3"], "what cpu-2core costs is not known"),
        (["--speed", "1", "--arrivals", "closed:users=2"], "not closed loops"),
        (["--model", "llama-3-70b"], "GB of weights"),
        (["--hardware", "h200,h100", "--price", "h200=3,h100=2", "--costs", "x"], "--costs are of one device"),
    ],
)
def test_what_cannot_be_planned_is_refused(more, says, capsys):
    assert cli.main([*COMMAND, *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("prices", ["h200=1,h200=2", "=3", "3,h200=2", "h200=free", "h200=0"])
def test_prices_that_are_none_are_refused(prices, capsys):
    with pytest.raises(SystemExit):
        cli.main([*COMMAND, "--price", prices])
    assert "--price" in capsys.readouterr().err


def test_what_cannot_be_kept_is_said_and_is_a_failure(capsys):
    assert cli.main([*COMMAND, "--slo", "ttft=1ms"]) == 1
    assert "an engine for themselves only" in capsys.readouterr().out


@pytest.mark.processes
def test_what_several_processes_simulate_is_what_one_does():
    trials = [SizingTrial(Fleet(FleetKind(H200), (Role.MIXED,) * many, Tuning(2048, 64))) for many in (1, 2, 3)]
    with TrialPool(HARD, 2) as several, TrialPool(HARD) as one:
        assert several.measure(trials) == one.measure(trials) == one.outcomes
        assert several.first_good(trials) == one.first_good(trials[1:])


def test_one_request_needs_no_more_than_one_engine():
    made = bench(planned(1.0, 300, 8, 1), Objective(ttft=1.0))
    answer, _, pool = answered(made, [FleetKind(H200)], most=512)
    assert answer is not None and {each.trial.fleet.devices for each in pool.outcomes} == {1}


def test_a_set_of_one_device_has_nothing_cheaper():
    made = bench(planned(2.0, 300, 8, 40), Objective(ttft=1.0, tpot=0.05))
    answer, _, pool = answered(made, [FleetKind(replace(H200, price_per_hour=0.0))])
    assert answer is not None and answer.cheaper is None and answer.best.trial.fleet.devices == 1
    view = AnswerView(answer, made, pool.outcomes, {"h200": "h200"}, ["trace"])
    said = sentences(view)
    assert any("Nothing of what may be bought is cheaper" in each for each in said) and "$" not in " ".join(said)
    assert "devices" in render(view)
