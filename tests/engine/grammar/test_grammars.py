"""Constrained answers of a real worker: they fit their grammar, whatever else is asked, and end with it."""

import json
import re

import pytest
from llguidance import LLMatcher

from engine.grammar import matchers
from engine.sequence import Sequence
from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.sampling_params import SamplingParams
from tests.engine.cpu.test_seam_replay import Logged
from tests.engine.grammar.walks import PROMPT, Constrained, text_of, write_vocabulary

NUMBER = "[0-9]{3}-[0-9]{4}"
ASKED = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.3, "seed": 7, "top_p": 0.95},
    "top k": {"temperature": 1.0, "seed": 3, "top_k": 2},
    "min p": {"temperature": 1.0, "seed": 3, "min_p": 0.5},
    "penalized": {"temperature": 1.0, "seed": 11, "repetition_penalty": 1.4, "presence_penalty": 0.7, "logprobs": 2},
    "no end of the model's": {"temperature": 1.0, "seed": 5, "ignore_eos": True},
    "longer than its grammar": {"temperature": 1.0, "seed": 5, "min_tokens": 20},
}


@pytest.fixture(scope="module")
def constrained(tiny_model, tmp_path_factory):
    return Constrained(tiny_model("llama")[1], write_vocabulary(tmp_path_factory.mktemp("vocabulary")))


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_an_answer_fits_its_grammar_and_ends_with_it(constrained, asked):
    engine = constrained.run(LLMatcher.grammar_from_regex(NUMBER), **asked)
    tokens = engine.outputs["r"]
    assert re.fullmatch(NUMBER, text_of(tokens))
    assert engine.ends["r"].finish_reason is FinishReason.STOP
    assert engine.ends["r"].stop_token is None and 2 not in tokens  # no end token was needed


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_a_constrained_request_cut_anywhere_is_resumed_on_another_engine(constrained, asked):
    grammar = LLMatcher.grammar_from_regex(NUMBER)
    tokens = constrained.run(grammar, **asked).outputs["r"]
    for cut in range(1, len(tokens)):
        assert tokens[:cut] + constrained.run(grammar, tokens[:cut], **asked).outputs["r"] == tokens, cut


def test_an_answer_that_is_cut_by_max_tokens_says_so(constrained):
    engine = constrained.run(LLMatcher.grammar_from_regex(NUMBER), max_tokens=5)
    assert engine.ends["r"].finish_reason is FinishReason.LENGTH
    assert len(engine.outputs["r"]) == 5
    whole = constrained.run(LLMatcher.grammar_from_regex("[0-9]{5}"), max_tokens=5)
    assert whole.ends["r"].finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
    exact = constrained.run(LLMatcher.grammar_from_regex("x{5}"), max_tokens=5)
    assert exact.ends["r"].finish_reason is FinishReason.STOP


def test_a_grammar_that_may_go_on_ends_where_the_model_ends(constrained):
    engine = constrained.run(LLMatcher.grammar_from_regex("x+"), max_tokens=30, logit_bias={2: 100.0})
    assert engine.outputs["r"][-1] == 2 == engine.ends["r"].stop_token
    assert text_of(engine.outputs["r"]) == "x"


def test_logprobs_are_those_of_the_unmasked_distribution(constrained):
    grammar = LLMatcher.grammar_from_regex(NUMBER)
    masked = constrained.run(grammar, kind=Logged, temperature=0.0, logprobs=3)
    free = constrained.run("", kind=Logged, max_tokens=1, temperature=0.0, logprobs=3, vocabulary="")
    assert masked.entries[0][1] < 0 and masked.entries[0][0] != free.entries[0][0]
    forced = constrained.run("", kind=Logged, max_tokens=1, logprobs=3, logit_bias={masked.outputs["r"][0]: 100.0})
    assert masked.entries[0] == forced.entries[0]


def test_what_is_masked_altogether_fails_alone_and_says_why(constrained):
    engine = constrained.run(LLMatcher.grammar_from_regex("xx"), logit_bias={3 + ord("x"): float("-inf")})
    assert engine.ends["r"].finish_reason is FinishReason.ERROR
    assert "the grammar" in engine.ends["r"].error


PERSON = {
    "type": "object",
    "properties": {"name": {"enum": ["Ada", "Grace"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_what_must_follow_is_computed_in_one_chunk_and_changes_nothing(constrained, asked):
    grammar = LLMatcher.grammar_from_json_schema(PERSON)
    plain, forced = (constrained.run(grammar, forced=forced, kind=Logged, **asked) for forced in (False, True))
    assert json.loads(text_of(plain.outputs["r"])).keys() == {"name", "age"}
    assert forced.outputs == plain.outputs
    assert forced.ends["r"].finish_reason is FinishReason.STOP
    assert forced.steps < plain.steps
    assert [token for token, _ in forced.entries] == [token for token, _ in plain.entries]


@pytest.mark.parametrize("forced", [False, True])
def test_the_head_is_computed_for_no_token_that_must_come(constrained, forced):
    def heads(**asked):
        engine = constrained.engine(forced=forced)
        model, rows = engine.worker._model, []
        model.logits = lambda hidden, logits=model.logits: rows.append(len(hidden)) or logits(hidden)
        asked = {"grammar": LLMatcher.grammar_from_json_schema(PERSON), "vocabulary": constrained.vocabulary, **asked}
        for i in range(3):
            engine.add(f"r{i}", [*PROMPT, i], max_tokens=40, **asked)
        engine.drain()
        return sum(rows), engine.outputs

    few, outputs = heads(repetition_penalty=1.2)
    assert few < sum(map(len, outputs.values()))
    # Who asks for probabilities gets those of the model, and what another edit may mask is looked at.
    for asked in ({"logprobs": 0}, {"logit_bias": {5: -1.0}}):
        rows, again = heads(repetition_penalty=1.2, **asked)
        # At the end of a text one more may have been guessed.
        assert sum(map(len, again.values())) <= rows <= sum(map(len, again.values())) + 3
        assert again == outputs


def test_requests_without_a_grammar_are_not_held_back_by_forced_tokens(constrained):
    grammar = LLMatcher.grammar_from_json_schema(PERSON)

    def run(forced):
        engine = constrained.engine(forced=forced)
        asked = {"grammar": grammar, "vocabulary": constrained.vocabulary}
        for i, settings in enumerate(({}, asked, {}, asked, {"temperature": 1.1, "seed": 4})):
            engine.add(f"r{i}", [*PROMPT, i], max_tokens=30, **settings)
        engine.drain()
        return engine

    plain, forced = run(False), run(True)
    assert forced.outputs == plain.outputs
    assert forced.steps <= plain.steps


def test_what_a_request_needs_stays_compiled_until_it_has_ended(constrained, monkeypatch):
    monkeypatch.setattr(matchers, "_COMPILED", 2)
    grammars = matchers.Grammars(constrained.config.vocab_size, constrained.config.eos_token_ids)
    texts = [LLMatcher.grammar_from_regex(f"{i}x") for i in range(4)]
    asked = [SamplingParams(max_tokens=5, grammar=text, vocabulary=constrained.vocabulary) for text in texts]
    first = AddRequest(request_id="r", prompt_ids=[5], sampling=asked[0])
    assert grammars.missing(first) == texts[0]
    grammars.prepare(asked[0])
    assert not grammars.missing(first) and grammars.keeps
    for other in asked[1:]:
        grammars.prepare(other)
    monkeypatch.setattr(matchers, "matcher_of", pytest.fail)
    sequence = Sequence(request_id="r", tokens=[5], prompt_length=1, sampling=asked[0], announced_length=1)
    assert grammars.masks([sequence]).any(), "in the worker's thread nothing is compiled"
    grammars.ended("r")
    assert grammars.missing(first) == texts[0] and not grammars.keeps
