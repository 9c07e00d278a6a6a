"""What the simulator is told: impossible numbers are refused by name; costs grow with work; equal content is equal ids."""

from dataclasses import fields

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from loadtest.report.metrics import summarize
from loadtest.report.records import LoadRun, RequestRecord
from loadtest.search import Attained, RateSearch
from loadtest.simulate import specs
from loadtest.simulate.cost import STEP_COSTS, CostModel, Work
from loadtest.simulate.policy import PolicyOutcome, header
from loadtest.simulate.specs import Costs, SpecError, load_costs, load_hardware, load_model, write_costs

COUNTS = st.integers(0, 10**5)
WORK = st.builds(Work, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
MODEL = CostModel(load_hardware("h200"), load_model("llama-3-8b"))


@pytest.mark.parametrize(
    "name", ["memory_bytes", "memory_share", "memory_bytes_per_second", "attention_operations_per_second"]
)
@pytest.mark.parametrize("value", [0, -1, "x", True, None, float("nan"), float("inf"), [1], 10**400])
def test_a_device_that_cannot_be_is_refused_by_key(name, value, tmp_path):
    content = yaml.safe_load((specs.CONFIGS / "hardware" / "a100.yaml").read_text()) | {name: value}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError, match=rf"d\.yaml: {name}"):
        load_hardware(str(tmp_path / "d.yaml"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("memory_share", 1.5, "at most 1"),
        ("operations_per_second", {"bf16": 0}, "more than 0"),
        ("tier_bytes_per_second", {}, "mapping"),
    ],
)
def test_shares_and_rates_are_checked(name, value, says, tmp_path):
    content = yaml.safe_load((specs.CONFIGS / "hardware" / "a100.yaml").read_text()) | {name: value}
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError, match=f"{name}.*{says}"):
        load_hardware(str(tmp_path / "d.yaml"))


@given(st.lists(st.floats(0, 1e6), min_size=len(fields(Costs)), max_size=len(fields(Costs))))
def test_constants_are_written_to_six_digits(tmp_path_factory, values):
    path = tmp_path_factory.getbasetemp() / "costs.yaml"
    costs = Costs(**dict(zip((each.name for each in fields(Costs)), values, strict=True)))
    write_costs(costs, path, "a comment")
    again = load_costs(path)
    for each in fields(Costs):
        assert getattr(again, each.name) == pytest.approx(getattr(costs, each.name), rel=1e-5)


@given(
    WORK, st.sampled_from(["tokens", "sequences", "samples", "decode_keys", "prefill_keys", "prefill_pairs"]), COUNTS
)
def test_more_work_never_takes_less_time(work, name, more):
    before = MODEL.seconds(work)
    setattr(work, name, getattr(work, name) + more)
    assert MODEL.seconds(work) >= before > 0


@given(WORK)
def test_the_time_is_linear_in_the_constants(work):
    features = MODEL.features(work)
    summed = sum(getattr(MODEL.costs, name) * feature for name, feature in zip(STEP_COSTS, features, strict=True))
    assert MODEL.seconds(work) == pytest.approx(summed + MODEL.fixed_seconds(work))


def test_a_setting_without_answers_keeps_its_columns():
    record = RequestRecord(index=0, intended=0.0, asked_prompt=1, asked_output=1)
    for records in ([], [record]):
        run = LoadRun(label="", target="", started=0.0, duration=1.0, plan={}, records=records)
        row = str(PolicyOutcome.of(512, summarize(run)))
        assert len(row) == len(header("tokens")) and row.split() == ["512", *"------", "0", "-", "0"]


@given(
    st.floats(1e-300, 1e300),
    st.floats(1e-300, 1e300),
    st.sampled_from([1e-300, 1e-17, 0.01, 0.5]),
    st.sampled_from([1, 3]),
)
def test_every_search_ends_with_the_capacity_between_its_bounds(start, capacity, precision, repeats):
    search = RateSearch(start=start, lowest=1e-305, highest=1e305, precision=precision, repeats=repeats)
    for _ in range(20_000):
        rate = search.next_rate
        if rate is None:
            break
        search.absorb(Attained(float(rate <= capacity)))
    found = search.found
    assert found is not None and found.rate <= capacity < found.above


def test_a_precision_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="precision"):
        RateSearch(precision=float("nan"))
