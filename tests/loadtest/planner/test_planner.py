"""What GPUs are best used for, by simulation: what is found is what one would expect, and the same each time."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from configs.loader import load
from configs.settings import Settings
from loadtest.planner import cli
from loadtest.planner.layout import Layout, layouts
from loadtest.planner.report import serve_flags, table
from loadtest.planner.tightness import Tightness, tightness_table
from loadtest.planner.tournament import Standing, tournament
from loadtest.planner.trial import Observation, TrialOutcome, Workbench, judge, observe, try_out
from loadtest.report.records import Objective
from loadtest.search import RateSearch
from loadtest.simulate.cluster import ServerShape
from loadtest.simulate.specs import SpecError, load_hardware, load_model
from loadtest.workload.arrivals import parse_arrivals
from loadtest.workload.plan import LoadShape
from loadtest.workload.traces import Trace, TraceRequest
from scheduler.router.view import Role
from server.commands import serve_parser

H200, LLAMA = load_hardware("h200"), load_model("llama-3-8b")
ALONE = replace(H200, link_bytes_per_second=0.0)  # an engine has one of them


def bench(prompt: int, output: int, objective: Objective, **more: object) -> Workbench:
    requests = [TraceRequest(arrival=float(n), prompt_tokens=prompt, output_tokens=output, line=n) for n in range(50)]
    return Workbench(
        trace=Trace(name="made", format="own", requests=requests),
        load=LoadShape(arrivals=parse_arrivals("poisson"), seed=1),
        hardware=ALONE,
        model=LLAMA,
        server=ServerShape(max_step_tokens=2048, max_running=64, kv_blocks=500, block_size=128),
        router="prefix-aware",
        objectives={"default": objective},
        bandwidth=None,
        latency=0.0005,
        seconds=20.0,
        least=60,
        most=80,
        **more,  # type: ignore[arg-type]
    )


def best(made: Workbench, gpus: int, start: float) -> str:
    """From a rate that is near the best one, so that few are tried."""
    search = RateSearch(start=start, highest=4 * start, precision=0.5, repeats=1)
    winner, standings = tournament(
        layouts(made.hardware, made.model, gpus, made.server.block_size),
        search,
        lambda pairs: [try_out(made, *pair) for pair in pairs],
    )
    assert winner is not None and winner is standings[0]
    assert winner.sustained is not None and winner.sustained.attainment >= search.goal
    return str(winner.layout)


def test_long_prompts_and_short_answers_want_engines_for_prompts():
    assert best(bench(3000, 16, Objective(ttft=0.3, tpot=0.015)), 3, 36.0) == "prefill:2,decode:1"


def test_long_answers_want_engines_for_decodes():
    assert best(bench(1000, 200, Objective(ttft=0.2, tpot=0.0075)), 3, 20.0) == "prefill:1,decode:2"


def test_tiny_prompts_want_engines_that_do_all():
    assert best(bench(48, 64, Objective(ttft=0.3, tpot=0.03)), 2, 480.0) == "mixed:2"


def test_one_gpu_does_all():
    assert best(bench(3000, 50, Objective(ttft=0.6, tpot=0.02)), 1, 6.0) == "mixed:1"


def test_layouts_use_every_gpu_and_divide_the_heads():
    found = layouts(H200, LLAMA, 8, 32)
    assert [str(each) for each in found if each.devices > 1] == ["mixed:4", "mixed:2", "mixed:1"]
    assert [str(each) for each in found if each.split] == [f"prefill:{many},decode:{8 - many}" for many in range(1, 8)]
    assert {each.devices for each in found} == {1, 2, 4, 8} and all(
        len(each.roles) * each.devices == 8 for each in found
    )
    assert [each.split for each in found] == sorted(each.split for each in found), "the simplest first"
    assert {each.devices for each in layouts(H200, LLAMA, 6, 32)} == {1, 2}
    large = layouts(H200, load_model("llama-3-70b"), 4, 32)
    assert {each.devices for each in large} == {2, 4} and not any(each.split for each in large)
    with pytest.raises(SpecError, match="GB of weights"):
        layouts(H200, load_model("llama-3-70b"), 1, 32)


def outcome(rate: float, attainment: float = 1.0, **more: float) -> TrialOutcome:
    figures = {"ttft": 1.0, "tpot": 1.0, "refused": 0.0, "unfit": 0.0, "preempted": 0.0} | more
    return TrialOutcome(rate=rate, attainment=attainment, **figures)


def limits(**most: float) -> tuple[Standing | None, list[Standing], int]:
    """A tournament of layouts that sustain so many requests per second."""
    made = {name: Layout(1, (Role.MIXED,) * place) for place, name in enumerate(most, 1)}
    names, simulated = {layout: name for name, layout in made.items()}, []

    def measure(pairs):
        simulated.extend(pairs)
        return [outcome(rate, 1.0 if rate <= most[names[layout]] else 0.5) for layout, rate in pairs]

    winner, standings = tournament(list(made.values()), RateSearch(repeats=1), measure)
    return winner, standings, len(simulated)


def test_the_best_is_found_and_the_others_are_soon_left_alone():
    winner, standings, simulated = limits(a=10.0, b=100.0, c=20.0, d=5.0, e=103.0, f=1.5)
    assert winner is standings[0] and len(winner.layout.roles) == 2, "b is as good as e, and simpler"
    assert 95 < winner.goodput <= 100
    assert [len(each.layout.roles) for each in standings][1:] == [5, 3, 1, 4, 6]
    assert all(each.failed is not None and each.sustained is not None for each in standings)
    assert simulated < 50, "each by itself would take 60 and more"


def test_where_nothing_is_sustained_there_is_no_winner():
    winner, standings, _ = limits(a=0.0, b=0.0)
    assert winner is None and all(each.sustained is None and each.goodput == 0 for each in standings)


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"ttft": 0.5}, "prefill"),
        ({"tpot": 0.5, "ttft": 0.9}, "decode"),
        ({"tpot": 0.6, "ttft": 0.5}, "both"),
        ({"ttft": 0.6, "refused": 0.3}, "full queue"),
        ({}, "end to end"),
        ({"ttft": 0.5, "preempted": 0.2}, "prefill, KV"),
    ],
)
def test_a_bottleneck_is_what_was_missed_the_most(figures, text):
    assert outcome(1.0, 0.5, **figures).bottleneck == text


def test_the_flags_start_what_was_simulated():
    made = bench(100, 100, Objective(ttft=1.0, tpot=0.02))
    split = Standing(Layout(1, (Role.PREFILL, Role.DECODE, Role.DECODE)), outcome(4.0), outcome(5.0, 0.8, ttft=0.8))
    flags = " ".join(serve_flags(split, made))
    assert flags.startswith("--roles prefill:1,decode:2 --tensor-parallel 1 --max-step-tokens 2048 --max-running 64")
    assert "--kv-host-gib 4" in flags and flags.endswith("--decode-slo-ms 20 --ttft-slo-ms 1000 --role-switching auto")
    assert serve_flags(Standing(Layout(1, (Role.MIXED,))), made)[:4] == ["--engines", "1", "--tensor-parallel", "1"]
    assert table([split], 0.9).rows == [
        ("prefill:1,decode:2", "1", "4.00", "4.00", "5.00", "80.0 %", "100.0 %", "0.0 %", "prefill")
    ]


@pytest.mark.parametrize("router", ["prefix-aware", "least-work"])
@pytest.mark.parametrize("objective", [Objective(ttft=1.0, tpot=0.02), Objective(ttft=1.0), Objective(tpot=0.02)])
@pytest.mark.parametrize("gpus", [1, 4])
def test_a_server_takes_the_flags_of_every_layout(gpus, objective, router):
    made = replace(bench(100, 100, objective), router=router)
    for layout in layouts(H200, LLAMA, gpus, 32):
        given = vars(serve_parser().parse_args(["model", *serve_flags(Standing(layout), made)]))
        settings = load({name: value for name, value in given.items() if name in Settings.model_fields}, {}).settings
        assert settings.engines == len(layout.roles) and settings.tensor_parallel == layout.devices


COMMAND = ["tests/loadtest/data/azure_conv.csv", "--hardware", "h200", "--model", "llama-3-8b", "--kv-blocks", "400"]
SMALL = "--max-prompt 600 --max-output 8 --least 24 --most 24 --start 50 --precision 0.5"
QUICK = ["--gpus", "2", "--slo", "ttft=60ms,tpot=30ms", "--jobs", "1", *SMALL.split()]


def test_the_command_prints_a_table_and_json_and_always_the_same(capsys):
    assert cli.main([*COMMAND, *QUICK]) == 0
    printed = capsys.readouterr().out
    assert "prefill:1,decode:1" in printed and "headrace serve --" in printed
    assert cli.main([*COMMAND, *QUICK, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["schema"] == "headrace.plan/1" and content["winner"]["roles"] in printed
    assert {(each["roles"], each["devices"]) for each in content["layouts"]} == {
        ("mixed:2", 1),
        ("mixed:1", 2),
        ("prefill:1,decode:1", 1),
    }
    assert all(each["trials"] for each in content["layouts"])
    shown = f"{content['winner']['goodput']:,.0f}"
    assert shown in printed, "what the second time found is what the first did"


def test_what_no_layout_can_keep_is_said(capsys):
    assert cli.main([*COMMAND, *QUICK, "--slo", "ttft=1ms", "--start", "1", "--lowest", "0.5"]) == 1
    assert "No layout meets the objectives" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--rate", "5"], "decides --rate itself"),
        (["--devices", "2"], "decides --devices itself"),
        (["--max-step-tokens", "64,128"], "one --max-step-tokens"),
        (["--slo", ""], "give --slo"),
        (["--arrivals", "closed:users=2"], "not closed loops"),
        (["--model", "llama-3-70b", "--gpus", "1"], "GB of weights"),
    ],
)
def test_what_cannot_be_planned_is_refused(more, says, capsys):
    assert cli.main([*COMMAND, *QUICK, *more]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.long
def test_each_layout_is_simulated_at_each_rate_once_for_all_scales():
    made = bench(1500, 120, Objective(ttft=0.5, tpot=0.012))
    seen: list[tuple[Layout, float]] = []

    def watch(pairs: Sequence[tuple[Layout, float]]) -> list[Observation]:
        seen.extend(pairs)
        return [observe(made, *pair) for pair in pairs]

    found = layouts(made.hardware, made.model, 2, made.server.block_size)
    sweep = Tightness(made, found, lambda: RateSearch(start=16.0, highest=64.0, precision=0.5, repeats=1), watch)
    rows = [sweep.row(scale) for scale in (0.01, 1.0, 4.0)]
    assert len(seen) == len(set(seen))
    assert rows[0].mixed is None and rows[0].split is None and rows[0].gain is None, "no server is that fast"
    tight, loose = rows[1].mixed, rows[2].mixed
    assert tight is not None and loose is not None and 0 < tight.goodput <= loose.goodput
    section = tightness_table(rows, made, 0.9)
    assert section.rows[0][1:] == ("ttft=5ms, tpot=0.12ms", "none", "0", "none", "0", "")
    assert section.rows[1][2] == "mixed:2" and section.rows[1][4] == "prefill:1,decode:1"


def test_a_record_that_is_judged_later_is_judged_alike():
    made = bench(1500, 120, Objective(ttft=0.5, tpot=0.012))
    layout = layouts(made.hardware, made.model, 2, made.server.block_size)[0]
    seen = observe(made, layout, 20.0)
    assert all(len(record.tokens) == 2 and record.ok for record in seen.records)
    assert judge(made, seen) == try_out(made, layout, 20.0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--layouts", "mixed:3"], "8 GPUs cannot be shared out among 3"),
        (["--layouts", "prefill:2,decode:2"], "have one GPU each"),
        (["--slo-scales", "1", "--json"], "leave out --json"),
    ],
)
def test_layouts_that_there_are_not_and_tables_that_are_not_json(flags, said, capsys):
    arguments = ["tests/loadtest/data/mooncake.jsonl", "--hardware", "h200", "--model", "llama-3-8b", "--gpus", "8"]
    assert cli.main([*arguments, "--slo", "ttft=1s", *flags]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--slo-scales", "0"], ["--slo-scales", "a"], ["--layouts", "mixed"]])
def test_scales_and_layouts_that_are_none_are_refused(flags, capsys):
    with pytest.raises(SystemExit):
        cli.main(["trace", "--hardware", "h200", "--model", "llama-3-8b", "--gpus", "8", *flags])
    assert flags[0] in capsys.readouterr().err
