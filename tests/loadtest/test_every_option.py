"""Each option of each command refuses what it cannot read, and says which option it is."""

from argparse import ArgumentParser, ArgumentTypeError
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest import evictions, routing, sweep
from loadtest.grid import cli as grid
from loadtest.options import replay_parser
from loadtest.planner import cli as planner
from loadtest.report import compare
from loadtest.simulate import cli as simulator
from loadtest.simulate.calibration import cli as calibrate
from loadtest.sizing import cli as sizing
from loadtest.workload.numbers import count, not_negative, positive, share, whole

PARSERS: dict[str, ArgumentParser] = {
    "replay": replay_parser(),
    "sweep": sweep._parser(),
    "grid": grid._parser(),
    "plan": sizing._parser(),
    "layouts": planner._parser(),
    "simulate": simulator._parser(),
    "compare": compare._parser(),
    "calibrate": calibrate._parser(),
    "evictions": evictions._parser(),
    "routing": routing._parser(),
}
READ = [
    (command, action.option_strings[-1])
    for command, parser in PARSERS.items()
    for action in parser._actions
    if action.option_strings and (action.choices or action.type not in (None, Path, str))
]
NAMED = {("sweep", "--target")}  # whatever is no NAME=URL is a URL


@pytest.mark.parametrize(("command", "option"), [pair for pair in READ if pair not in NAMED])
def test_what_an_option_cannot_read_is_refused_by_its_name(command, option, capsys):
    for wrong in ("no such thing", "nan", "-inf", "1e999", "5;;", *([""] if option != "--slo" else [])):
        with pytest.raises(SystemExit) as caught:
            PARSERS[command].parse_args([f"{option}={wrong}"])
        said = capsys.readouterr().err.splitlines()[-1]
        assert caught.value.code == 2 and f"argument {option}" in said.replace("/", " "), (wrong, said)


@given(st.floats() | st.integers(), st.sampled_from([positive, not_negative, share, whole, count]))
def test_a_number_is_read_as_it_is_or_refused_with_its_text(value, kind):
    bounds = {positive: (5e-324, inf), not_negative: (0, inf), share: (0, 1), whole: (1, inf), count: (0, inf)}
    low, high = bounds[kind]
    fits = low <= value <= high and abs(value) != inf and abs(value) < 10**300
    if kind in (whole, count):
        fits = fits and isinstance(value, int)
    try:
        found = kind(str(value))
    except ArgumentTypeError as error:
        assert not fits and repr(str(value)) in str(error)
    else:
        assert low <= found <= high and found < inf and found == pytest.approx(value)


@given(st.floats(0, 100))
def test_a_share_in_percent_is_a_hundredth(percent):
    assert share(f"{percent!r}%") == pytest.approx(percent / 100)


@pytest.mark.parametrize("text", ["%", "10%%", "101%", "-1%", "nan%", "1.01", "%10"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(ArgumentTypeError, match=r"is not a share: 0\.1, 10%"):
        share(text)
