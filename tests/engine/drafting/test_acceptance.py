"""What the table of acceptance is computed from: the model as its own draft is always right, another one now and then."""

import pytest
import torch

from configs.model.source import resolve_model
from engine.cpu.formats import Arithmetic
from engine.cpu.loading import PoolSize, load_model
from engine.models.registry import read_config
from tests.engine.drafting.acceptance import BLOCK, BLOCKS, Texts, looked_up

PROMPT = [5, 17, 40, 99, 120]


@pytest.fixture(scope="module")
def models(tiny_model):
    def load(name):
        source = resolve_model(str(tiny_model(name)[1]))
        size = PoolSize(BLOCKS, BLOCK, BLOCKS * BLOCK)
        return load_model(source, read_config(source), Arithmetic("exact", "for the test"), "auto", size)

    return load("llama"), load("llama"), load("llama-tied")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_model_beside_itself_and_beside_another(models, temperature):
    model, same, other = models
    texts = Texts(model, same, 320)
    ids, scores = texts.drawn(PROMPT, temperature, 40)
    assert ids[:5] == PROMPT and len(ids) == 45 and scores.shape == (40, 320)
    assert texts.accepted(ids, scores, temperature) == pytest.approx((1.0, 1.0), abs=1e-3)
    again, _ = texts.drawn(PROMPT, temperature, 40)
    assert again == ids
    coupled, shared = Texts(model, other, 320).accepted(ids, scores, temperature)
    assert 0.0 <= coupled < 0.9 and 0.0 <= shared < 0.99
    if temperature == 0:
        assert coupled == pytest.approx(shared), "all or nothing at each position"


def test_scores_are_those_that_the_text_was_drawn_by(models):
    texts = Texts(models[0], models[0], 320)
    ids, scores = texts.drawn(PROMPT, 0.0, 12)
    assert torch.equal(scores.argmax(-1), torch.tensor(ids[5:]))


def test_lookup_is_right_where_a_text_repeats_itself():
    assert looked_up([1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 3], 6) == (1.0, 1.0)
    assert looked_up(list(range(20)), 10) == (0.0, 0.0)
    found, right = looked_up([1, 2, 3, 9, 1, 2, 4, 5], 6)
    assert (found, right) == (0.5, 0.0)
