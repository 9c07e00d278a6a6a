"""Constrained rows beside others on the device's sampler: the tokens of the CPU's, two steps at once, with and without guesses."""

import re

import pytest
from llguidance import LLMatcher

from configs.model.source import resolve_model
from engine.grammar.forced_tokens import ForcedTokens
from engine.grammar.matchers import Grammars
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from scheduler.types.messages import FinishReason
from tests.engine.gpu.test_worker import InAdvance, Logged, prompt
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, one_layer
from tests.engine.grammar.walks import text_of, write_vocabulary

BLOCKS = 30
WORD = "name|(number [0-9]{2})"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


def serve(kind, worker_of, folder, vocabulary, *, forced=False):
    config = read_config(resolve_model(str(folder)))
    grammars = Grammars(config.vocab_size, config.eos_token_ids)
    edits = standard_edits(config.vocab_size, config.eos_token_ids, grammars)
    options = {"drafter": ForcedTokens(grammars, at_once=False)} if forced else {}
    engine = kind(*worker_of(folder, BLOCKS, edits=edits), BLOCKS, **options)
    asked = {"grammar": LLMatcher.grammar_from_regex(WORD), "vocabulary": vocabulary}
    for i, settings in enumerate(({}, asked, {**asked, "logprobs": 2, "logit_bias": {3 + ord("n"): 5.0}}, {})):
        engine.add(f"r{i}", prompt(6, i), max_tokens=16, temperature=0.0, **settings)
    engine.drain()
    return engine


@pytest.mark.parametrize("forced", [False, True])
def test_the_device_masks_as_the_host_does(folder, tmp_path, forced):
    vocabulary = write_vocabulary(tmp_path)
    wanted = serve(Logged, cpu_worker, folder, vocabulary)
    found = serve(InAdvance, gpu_worker, folder, vocabulary, forced=forced)
    assert found.outputs == wanted.outputs
    for name in ("r1", "r2"):
        assert re.fullmatch(WORD, text_of(found.outputs[name]))
        assert found.ends[name].finish_reason is FinishReason.STOP
    assert [entry.token_id for entry in found.logprobs["r2"]] == found.outputs["r2"]
