"""A replay's options: windows, bodies, and that what a parser takes reaches the plan and the target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.options import plan_of, replay_parser, target_of
from loadtest.workload.options import window
from tests.loadtest.test_loadtest_cli import BURSTGPT

NEEDED = [BURSTGPT, "--target", "http://127.0.0.1:9/v1"]
UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


@given(st.integers(0, 500), st.sampled_from(list(UNITS)), st.integers(1, 500), st.sampled_from(list(UNITS)))
def test_a_window_is_read_in_every_unit(start, unit, longer, other):
    begin = start * UNITS[unit]
    end = begin + longer * UNITS[other]
    assert window(f"{start}{unit}:{end}s") == (begin, end)


@pytest.mark.parametrize(
    ("text", "found"),
    [(":", (0, float("inf"))), (":90", (0, 90)), ("1m:", (60, float("inf"))), ("0.5h:1h", (1800, 3600))],
)
def test_either_end_of_a_window_may_be_left_out(text, found):
    assert window(text) == found


@pytest.mark.parametrize("text", ["", "5", "5:5", "9:8", "x:9", "1:y", "h:2", "1:2:3", "1w:2w"])
def test_what_is_no_window_is_refused_by_its_option(text, capsys):
    with pytest.raises(SystemExit) as caught:
        replay_parser().parse_args([*NEEDED, "--window", text])
    assert caught.value.code == 2
    assert "--window" in capsys.readouterr().err


def test_without_options_a_trace_is_sent_as_it_is():
    options = replay_parser().parse_args(NEEDED)
    plan = plan_of(options)
    assert (plan.shape.speed, plan.shape.scale, plan.shape.rate, plan.shape.limit) == (1.0, 1.0, None, None)
    assert plan.objectives == {} and plan.verify == 0 and plan.live
    assert target_of(options).base_url == "http://127.0.0.1:9/v1"


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        (["--limit", "3"], lambda plan, target: plan.shape.limit == 3),
        (["--rate", "2.5"], lambda plan, target: plan.shape.rate == 2.5),
        (["--duration", "60"], lambda plan, target: plan.shape.duration == 60),
        (["--spread"], lambda plan, target: plan.shape.spread),
        (["--max-prompt", "7"], lambda plan, target: plan.shape.max_prompt == 7),
        (["--max-output", "8"], lambda plan, target: plan.shape.max_output == 8),
        (
            ["--warm-up", "2m", "--cool-down", "30"],
            lambda plan, target: (plan.shape.warm_up, plan.shape.cool_down) == (120, 30),
        ),
        (["--cancel", "10%", "--cancel-after", "2"], lambda plan, target: (plan.cancel, plan.cancel_after) == (0.1, 2)),
        (["--same-texts", "--seed", "4"], lambda plan, target: plan.texts == 4),
        (["--texts", "11", "--seed", "4"], lambda plan, target: plan.texts == 11),
        (["--seed", "4"], lambda plan, target: plan.texts is None),
        (["--seed", "9"], lambda plan, target: plan.shape.seed == 9),
        (["--max-lateness", "30"], lambda plan, target: plan.max_lateness == 0.03),
        (["--quiet"], lambda plan, target: not plan.live),
        (["--verify", "2"], lambda plan, target: plan.verify == 2),
        (["--slo", "ttft=500ms"], lambda plan, target: bool(plan.objectives)),
        (["--model", "m"], lambda plan, target: target.model == "m"),
        (["--api-key", "k"], lambda plan, target: target.api_key == "k"),
        (["--endpoint", "chat"], lambda plan, target: target.endpoint == "chat"),
        (["--extra", '{"top_k": 4}'], lambda plan, target: target.extra == {"top_k": 4}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_reaches_what_is_run(arguments, read):
    options = replay_parser().parse_args([*NEEDED, *arguments])
    assert read(plan_of(options), target_of(options))


@pytest.mark.parametrize("extra", ["{", "[]", "3", "null", "words"])
def test_more_for_the_body_has_to_be_an_object(extra, capsys):
    with pytest.raises(SystemExit):
        replay_parser().parse_args([*NEEDED, "--extra", extra])
    assert "--extra" in capsys.readouterr().err
