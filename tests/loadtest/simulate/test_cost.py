from dataclasses import replace

import pytest

from loadtest.simulate.cost import CostModel, Work, work_of
from loadtest.simulate.specs import Costs, load_hardware, load_model
from scheduler.types.step import Chunk, ChunkPhase, Step

PEAK = Costs(step=0, token=0, sequence=0, matrices=1, attention=1, request=0, delivery=0)


def model(**costs: float) -> CostModel:
    return CostModel(load_hardware("h200").with_costs(replace(PEAK, **costs)), load_model("llama-3-8b"))


def chunk(start: int, length: int, samples: bool) -> Chunk:
    phase = ChunkPhase.DECODE if length == 1 else ChunkPhase.PREFILL
    return Chunk(request_id="", start=start, length=length, block_table=[], phase=phase, samples=samples)


def test_the_work_of_a_step():
    step = Step(step_id=0, chunks=[chunk(9, 1, True), chunk(4, 3, False), chunk(0, 2, True)])
    assert work_of(step) == Work(
        tokens=6, sequences=3, samples=2, decode_keys=10, prefill_keys=7 + 2, prefill_pairs=(5 + 6 + 7) + (1 + 2)
    )


def test_one_token_takes_the_weights_bytes_over_the_bandwidth():
    weights = 2 * (load_model("llama-3-8b").layer_weights + 128256 * 4096)
    assert model().seconds(Work(tokens=1, sequences=1, samples=1)) == pytest.approx(weights / 4.8e12)


def test_many_tokens_take_their_operations_over_the_rate():
    operations = 2 * load_model("llama-3-8b").layer_weights * 8192
    assert model().seconds(Work(tokens=8192, sequences=1)) == pytest.approx(operations / 989e12)


def test_a_decode_reads_its_keys_once():
    extra = model().seconds(Work(tokens=1, decode_keys=10_000)) - model().seconds(Work(tokens=1))
    assert extra == pytest.approx(10_000 * 128 * 1024 / 4.8e12)


def test_a_long_chunk_pays_for_its_pairs():
    extra = model().seconds(Work(tokens=4096, prefill_keys=4096, prefill_pairs=4096 * 4097 // 2)) - model().seconds(
        Work(tokens=4096)
    )
    assert extra == pytest.approx(4 * 32 * 32 * 128 * 4096 * 4097 / 2 / 989e12)


def test_the_time_is_the_features_times_the_constants():
    costs = Costs(step=2.0, token=3.0, sequence=5.0, matrices=7.0, attention=11.0, request=0, delivery=0)
    cost = CostModel(load_hardware("h200").with_costs(costs), load_model("llama-3-8b"))
    work = Work(tokens=6, sequences=3, samples=2, decode_keys=10, prefill_keys=9, prefill_pairs=21)
    one, tokens, sequences, matrices, attention = cost.features(work)
    assert (one, tokens, sequences) == (1, 6, 3)
    assert cost.seconds(work) == pytest.approx(2 + 18 + 15 + 7 * matrices + 11 * attention)


def test_moves_go_at_their_tiers_pace_side_by_side():
    cost = model()
    assert cost.move_seconds({"host": 55e9, "disk": 3e9}) == pytest.approx(1.0)
    work = Work(tokens=1, moved={"disk": 12e9})
    assert cost.seconds(work) == pytest.approx(2 + cost.seconds(Work(tokens=1)))
    with pytest.raises(KeyError):
        cost.move_seconds({"tape": 1.0})


def test_two_devices_halve_the_work_and_pay_for_the_link():
    one, two = model(), CostModel(model().hardware, model().model, devices=2)
    work = Work(tokens=4096, sequences=1, prefill_keys=4096, prefill_pairs=4096 * 4097 // 2)
    sent = 4096 * 4096 * 2  # each device sends its half twice
    link = 2 * 32 * (8e-6 + sent / 450e9)
    assert two.seconds(work) == pytest.approx(one.seconds(work) / 2 + link)
