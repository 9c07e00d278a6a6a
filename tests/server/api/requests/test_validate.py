"""Parsed bodies to valid sequences: ids, lengths, seeds and defaults, against a context of 256 tokens and 258 ids."""

import json
from dataclasses import replace

import pytest
from tokenizers import normalizers

from server.api.chat import chat_job
from server.api.completions import completion_job
from server.api.detokenize import detokenized
from server.api.requests.parse import parse
from server.api.requests.validate import choice_seed
from server.api.tokenize import tokenized
from server.errors import ContextExceeded, InvalidRequest, ModelNotFound, Unavailable, UnsupportedField
from server.schema.chat import ChatRequest
from server.schema.completions import CompletionRequest
from server.schema.tokens import DetokenizeRequest, TokenizeRequest
from tests.server.api.scripted import CONTEXT, START, Server
from tests.server.text.test_fill_in_middle import QWEN, bytes_with

SERVER_CONTEXT = Server().context
USER = {"role": "user", "content": "hi"}
PROMPT = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
LENGTH = len(b"user\nhi\nassistant\n") + 3


def complete(context=SERVER_CONTEXT, **fields):
    return completion_job(CompletionRequest(**{"prompt": "abc", **fields}), context)


def chat(context=SERVER_CONTEXT, **fields):
    return chat_job(ChatRequest(**{"messages": [USER], **fields}), context)


def tokenize(context=SERVER_CONTEXT, **fields):
    return tokenized(TokenizeRequest(**fields), context)


def detokenize(context=SERVER_CONTEXT, **fields):
    return detokenized(DetokenizeRequest(**fields), context)


def sampling(**fields):
    return complete(**fields).sequences[0].request.sampling


def refused(make, kind=InvalidRequest, **fields):
    with pytest.raises(kind) as caught:
        make(**fields)
    return caught.value


def test_a_job_has_a_sequence_for_each_choice_of_each_prompt():
    job = complete(prompt=["ab", "c"], n=2, priority=-3, cache_salt="s")
    assert [(s.index, s.request.prompt_ids) for s in job.sequences] == [
        (0, [97, 98]),
        (1, [97, 98]),
        (2, [99]),
        (3, [99]),
    ]
    assert len({s.request.request_id for s in job.sequences}) == 4
    assert {(s.request.priority, s.request.cache_salt) for s in job.sequences} == {(-3, "s")}
    assert job.id.startswith("cmpl-") and job.model == "small"


def test_names():
    assert complete(model="org/small").model == "org/small"
    error = refused(complete, ModelNotFound, model="large")
    assert error.param == "model" and "large" in error.message and "org/small" in error.message


def test_ids_must_be_in_the_vocabulary():
    assert complete(prompt=[0, 257]).sequences[0].request.prompt_ids == [0, 257]
    error = refused(complete, prompt=[5, 258])
    assert error.param == "prompt[1]" and "257" in error.message and "258" in error.message
    assert refused(complete, prompt=[[1], [2, 300]]).param == "prompt[1][1]"
    assert refused(complete, stop_token_ids=[258]).param == "stop_token_ids[0]"
    assert refused(complete, logit_bias={"258": 1.0}).param == "logit_bias.258"
    error = refused(complete, logit_bias={"258": 1, "5": 1, "999": 1})
    assert error.param == "logit_bias" and error.message.endswith("0 to 257, got 258; 999")


def test_an_empty_prompt_is_refused_unless_the_tokenizer_begins_it():
    assert refused(complete, prompt="").param == "prompt"
    assert refused(complete, prompt=["a", ""]).param == "prompt[1]"
    with_bos = Server(bos=True).context
    assert complete(with_bos, prompt="").sequences[0].request.prompt_ids == [START]
    assert refused(complete, context=with_bos, prompt="", add_special_tokens=False).param == "prompt"


def test_a_text_must_not_hold_tokens_that_only_the_tokenizer_knows():
    server = Server()
    server.engine.status.info.vocab_size = 257  # <|im_end|> has no row in the model
    error = refused(complete, context=server.context, prompt=["a", "b<|im_end|>"])
    assert error.param == "prompt[1]" and all(word in error.message for word in ("256", "257", "<|im_end|>"))
    assert refused(chat, context=server.context).param == "messages"
    assert complete(server.context, prompt="<|im_start|>").sequences[0].request.prompt_ids == [START]


def test_a_nul_is_a_character_where_the_tokenizer_has_it():
    assert complete(prompt=["a\0b", "\0"]).sequences[0].request.prompt_ids == [97, 0, 98]
    assert tokenize(prompt="\0").tokens == [0]
    assert sampling(bad_words=["\0"]).bad_words == ((0,), (32, 0))
    context = Server().context
    context.tokenizer._backend.normalizer = normalizers.Replace("\0", "")
    nul = [{"role": "user", "content": "a\0"}]
    for make, param, fields in [
        (complete, "prompt[1]", {"prompt": ["a", "b\0"]}),
        (complete, "bad_words[0]", {"bad_words": ["b\0"]}),
        (chat, "messages", {"messages": nul}),
        (tokenize, "prompt", {"prompt": "\0"}),
        (tokenize, "messages", {"messages": nul}),
    ]:
        error = refused(make, context=context, **fields)
        assert error.param == param and "no token for it" in error.message


def test_max_tokens_of_completions():
    assert sampling().max_tokens == 16
    assert sampling(max_tokens=0).max_tokens == 0
    assert sampling(max_tokens=CONTEXT - 3).max_tokens == CONTEXT - 3
    assert sampling(prompt="a" * (CONTEXT - 5)).max_tokens == 5
    error = refused(complete, ContextExceeded, max_tokens=CONTEXT - 2)
    assert error.param == "max_tokens"
    assert all(str(number) in error.message for number in (CONTEXT, 3, CONTEXT - 2))


def test_max_tokens_of_chat():
    left = CONTEXT - LENGTH
    assert chat().sequences[0].request.sampling.max_tokens == left
    for fields in ({"max_tokens": 7}, {"max_completion_tokens": 7}, {"max_tokens": 7, "max_completion_tokens": 7}):
        assert chat(**fields).sequences[0].request.sampling.max_tokens == 7
    error = refused(chat, max_tokens=7, max_completion_tokens=8)
    assert error.param == "max_completion_tokens" and "7" in error.message and "8" in error.message
    for field in ("max_tokens", "max_completion_tokens"):
        error = refused(chat, ContextExceeded, **{field: left + 1})
        assert error.param == field and f"{left + 1} in `{field}`" in error.message
        assert f"at most `{field}`=7" in refused(chat, min_tokens=8, **{field: 7}).message


def test_an_operator_sets_what_an_answer_has_at_most():
    def most(context, make=complete, **fields):
        return make(context, **fields).sequences[0].request.sampling.max_tokens

    plenty = Server(default_max_tokens=40).context
    assert most(plenty) == most(plenty, chat) == 40
    assert most(plenty, max_tokens=90) == most(plenty, chat, max_completion_tokens=90) == 90
    assert most(plenty, prompt="a" * (CONTEXT - 5)) == 5
    bounded = Server(max_output_tokens=9).context
    assert most(bounded) == most(bounded, chat) == 9
    assert most(bounded, max_tokens=9) == 9 and most(bounded, max_tokens=0) == 0
    assert most(Server(default_max_tokens=4, max_output_tokens=9).context, chat) == 4


def test_prompts_that_fill_or_exceed_the_context():
    full = "a" * CONTEXT
    assert sampling(prompt=full, max_tokens=0).max_tokens == 0
    assert refused(complete, ContextExceeded, prompt=full).param == "prompt"
    error = refused(complete, ContextExceeded, prompt=["b", full + "a"])
    assert error.param == "prompt[1]" and str(CONTEXT) in error.message and str(CONTEXT + 1) in error.message
    assert refused(chat, ContextExceeded, messages=[{"role": "user", "content": full}]).param == "messages"


LONGEST = len(b"<|im_start|>")  # of the tokenizer's tokens
MOST_BYTES = CONTEXT * LONGEST


def test_a_text_that_cannot_fit_is_refused_by_its_bytes_before_it_is_tokenized():
    fitting = "<|im_start|>" * CONTEXT
    assert len(complete(prompt=fitting, max_tokens=0).sequences[0].request.prompt_ids) == CONTEXT
    for text, size in [("a" * (MOST_BYTES + 1), MOST_BYTES + 1), ("é" * MOST_BYTES, 2 * MOST_BYTES)]:
        error = refused(complete, ContextExceeded, prompt=["b" * MOST_BYTES, text])
        assert error.param == "prompt[1]"  # not [0], whose tokens are too many
        assert all(str(number) in error.message for number in (CONTEXT, LONGEST, MOST_BYTES, size))
    long = [{"role": "user", "content": "a" * MOST_BYTES}]
    for make in (chat, tokenize):
        error = refused(make, ContextExceeded, messages=long)
        assert error.param == "messages" and f"{MOST_BYTES} bytes" in error.message
    error = refused(tokenize, ContextExceeded, prompt="a" * (MOST_BYTES + 1))
    assert error.param == "prompt" and f"{MOST_BYTES} bytes" in error.message
    assert tokenize(prompt="a" * MOST_BYTES).count == MOST_BYTES


def test_counts_are_checked_before_anything_costs_time():
    context = Server(max_prompts=4, max_n=3).context
    assert refused(complete, context=context, prompt=["a" * (MOST_BYTES + 1), "b"], n=3).param == "n"
    error = refused(complete, ContextExceeded, prompt=[[258], [1] * (CONTEXT + 1)])
    assert error.param == "prompt[1]" and str(CONTEXT + 1) in error.message
    error = refused(detokenize, ContextExceeded, tokens=[258] * (CONTEXT + 1))
    assert error.param == "tokens" and f"{CONTEXT} tokens" in error.message and str(CONTEXT + 1) in error.message
    assert detokenize(tokens=[97] * CONTEXT).prompt == "a" * CONTEXT


def test_min_tokens_is_at_most_max_tokens():
    assert sampling(min_tokens=16).min_tokens == 16
    error = refused(complete, min_tokens=17)
    assert error.param == "min_tokens" and "16" in error.message and "17" in error.message


def test_a_seed_gives_each_choice_its_own_and_the_first_the_given_one():
    seeds = [s.request.sampling.seed for s in complete(seed=7, n=4).sequences]
    assert seeds[0] == 7 and len(set(seeds)) == 4
    assert seeds == [s.request.sampling.seed for s in complete(seed=7, n=4).sequences]
    assert [s.request.sampling.seed for s in complete(prompt=["a", "b"], seed=7).sequences] == [7, 7]
    assert choice_seed(-(2**63), 0) == -(2**63)
    assert all(0 <= choice_seed(7, i) < 2**63 for i in range(1, 50))


def test_without_a_seed_one_is_drawn_for_each_sequence():
    seeds = [s.request.sampling.seed for s in complete(prompt=["a", "a"], n=8).sequences]
    assert len(set(seeds)) == 16


def test_sampling_fields_arrive():
    got = sampling(
        temperature=0.5,
        top_k=-1,
        top_p=0.9,
        min_p=0.1,
        presence_penalty=0.1,
        frequency_penalty=0.2,
        repetition_penalty=1.1,
        logit_bias={"5": 3},
        stop_token_ids=[7, 8, 7],
        ignore_eos=True,
        min_tokens=2,
    )
    assert (got.temperature, got.top_k, got.top_p, got.min_p) == (0.5, 0, 0.9, 0.1)
    assert (got.presence_penalty, got.frequency_penalty, got.repetition_penalty) == (0.1, 0.2, 1.1)
    assert (got.logit_bias, got.stop_token_ids, got.ignore_eos, got.min_tokens) == ({5: 3.0}, (7, 8), True, 2)
    assert sampling(top_k=3).top_k == 3
    assert sampling(top_p=0, temperature=1.5).greedy and not sampling(top_p=1e-9).greedy
    assert sampling(temperature=1e-5).greedy and not sampling(temperature=1e-3).greedy


def test_bad_words_with_and_without_a_space():
    assert set(sampling(bad_words=["no"]).bad_words) == {tuple(b"no"), tuple(b" no")}
    assert set(sampling(bad_words=[" no", "no"]).bad_words) == {tuple(b"no"), tuple(b" no")}


def test_logprobs():
    assert (sampling().logprobs, sampling().prompt_logprobs) == (None, None)
    assert (sampling(logprobs=0).logprobs, sampling(logprobs=0).prompt_logprobs) == (0, None)
    echoed = sampling(logprobs=2, echo=True)
    assert (echoed.logprobs, echoed.prompt_logprobs) == (2, 2)
    assert sampling(logprobs=2, echo=True, prompt_logprobs=5).prompt_logprobs == 5
    assert chat(logprobs=True).sequences[0].request.sampling.logprobs == 0
    assert chat(logprobs=True, top_logprobs=3).sequences[0].request.sampling.logprobs == 3
    assert chat(prompt_logprobs=1).sequences[0].request.sampling.prompt_logprobs == 1
    assert refused(chat, top_logprobs=3).param == "top_logprobs"


def test_best_of_is_at_least_n_and_not_streamed():
    job = complete(n=2, best_of=5, seed=3)
    assert len(job.sequences) == 5 and len({each.request.sampling.seed for each in job.sequences}) == 5
    assert {each.request.sampling.logprobs for each in job.sequences} == {0}  # by which is chosen
    assert sampling(n=2, best_of=2).logprobs is None and sampling(best_of=3, logprobs=4).logprobs == 4
    few = refused(complete, n=3, best_of=2)
    assert few.param == "best_of" and "at least `n`=3, got 2" in few.message
    assert refused(complete, best_of=2, stream=True).param == "best_of"
    assert len(complete(best_of=1, stream=True).sequences) == 1
    many = refused(complete, context=Server(max_prompts=4, max_n=3).context, prompt=["a", "b"], best_of=3)
    assert many.param == "n" and "at most 4" in many.message


def test_a_search_has_a_sequence_for_each_answer():
    job = complete(
        prompt=["abc", "d"], n=2, best_of=5, use_beam_search=True, length_penalty=0.5, early_stopping="never"
    )
    told = [each.request.beams for each in job.sequences]
    assert [(each.rank, each.answers, each.width) for each in told] == [(0, 2, 5), (1, 2, 5)] * 2
    assert {(each.length_penalty, each.early_stopping) for each in told} == {(0.5, "never")}
    assert told[0].group == told[1].group != told[2].group == told[3].group
    assert sampling(use_beam_search=True, best_of=3).logprobs is None  # it chooses by itself
    (alone,) = chat(use_beam_search=True).sequences
    assert (alone.request.beams.answers, alone.request.beams.width) == (1, 1)
    assert {
        each.request.beams.early_stopping for each in chat(use_beam_search=True, n=3, early_stopping=True).sequences
    } == {"always"}
    assert complete(n=2).sequences[0].request.beams is None


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("stream", True, "must be false with `use_beam_search`, got true"),
        ("stop", "a", "must be [] with `use_beam_search`, got an array of 1"),
        ("temperature", 0.7, "must be 0 or 1 with"),
        ("top_k", 5, "must be 0 or -1 with"),
        ("logit_bias", {"5": 1}, "must be {} with `use_beam_search`, got an object"),
        ("response_format", {"type": "json_object"}, 'must be {"type": "text"} with'),
        ("guided_regex", "a+", "must be absent with"),
        ("max_tokens", 0, "must be at least 1 with `use_beam_search`, got 0"),
        ("best_of", 2, "must be at least `n`=3, got 2"),
    ],
)
def test_what_a_search_does_not_heed_is_refused(field, value, words):
    error = refused(complete, **{"use_beam_search": True, "n": 3, field: value})
    assert error.param == field and words in error.message


def test_what_only_a_search_heeds_is_refused_without():
    assert refused(complete, length_penalty=2).message.startswith("`length_penalty` needs `use_beam_search`")
    assert refused(chat, early_stopping=True).param == "early_stopping"
    assert refused(chat, use_beam_search=True, tools=[{"type": "function", "function": {"name": "f"}}]).param == "tools"
    temperate = complete(use_beam_search=True, temperature=0, response_format={"type": "text"}, logit_bias={})
    assert temperate.sequences[0].request.beams is not None


def test_a_prompt_is_cut_where_that_is_asked_for():
    def kept(**fields):
        prompt = complete(**fields).sequences[0].prompt
        return bytes(prompt.ids).decode(), prompt.text

    assert kept(truncate_prompt_tokens=2) == ("bc", None)
    assert kept(truncate_prompt_tokens=2, truncation_side="right") == ("ab", None)
    assert kept(truncate_prompt_tokens=3) == ("abc", "abc")
    assert kept(prompt=[97, 98, 99], truncate_prompt_tokens=1) == ("c", None)
    long = "x" * (CONTEXT - 2) + "yz"
    assert refused(complete, ContextExceeded, prompt=long).param == "prompt"
    assert kept(prompt=long, truncate_prompt_tokens=-1, max_tokens=9)[0] == "x" * (CONTEXT - 11) + "yz"
    assert len(kept(prompt=[97] * (CONTEXT + 9), truncate_prompt_tokens=-1)[0]) == CONTEXT - 1
    assert chat(truncate_prompt_tokens=4).sequences[0].prompt.ids == chat().sequences[0].prompt.ids[-4:]
    assert refused(complete, truncate_prompt_tokens=0).param == "truncate_prompt_tokens"
    assert refused(complete, truncation_side="right").param == "truncation_side"
    assert refused(complete, ContextExceeded, prompt=long, truncate_prompt_tokens=CONTEXT + 5).param


def test_a_gap_is_filled_by_a_model_that_has_the_tokens_for_it():
    filling = replace(SERVER_CONTEXT, tokenizer=bytes_with([*QWEN, "<|endoftext|>"]))
    (sequence,) = complete(filling, prompt="ab", suffix="cd", stop_token_ids=[5]).sequences
    assert sequence.prompt.ids == [0xF5, *b"ab", 0xF6, *b"cd", 0xF7]
    assert sequence.request.sampling.stop_token_ids == (5, 0xF8, 0xF5, 0xF6, 0xF7)
    several = complete(filling, prompt=[[97], [98, 99]], suffix="cd").sequences
    assert [each.prompt.ids[1:-4] for each in several] == [[97], [98, 99]]
    assert complete(filling, suffix="").sequences[0].prompt.ids == [97, 98, 99]
    refusal = refused(complete, UnsupportedField, suffix="cd")
    assert refusal.param == "suffix" and "<|fim_prefix|>" in refusal.message
    for other in ({"echo": True}, {"truncate_prompt_tokens": 2}):
        assert refused(complete, context=filling, suffix="cd", **other).param == "suffix"
    assert refused(complete, ContextExceeded, context=filling, suffix="x" * (99 * CONTEXT)).param == "suffix"
    assert refused(complete, ContextExceeded, context=filling, suffix="x" * (CONTEXT - 4)).param == "prompt"


def test_allowed_tokens_are_in_the_vocabulary():
    assert sampling(allowed_token_ids=[5, 257, 5]).allowed_token_ids == (5, 257)
    assert refused(complete, allowed_token_ids=[1, 258]).param == "allowed_token_ids[1]"


def test_a_prediction_is_checked_and_read_by_who_guesses():
    def judged(prediction, **more):
        body = json.dumps({"messages": [USER], "prediction": prediction, "seed": 1, **more}).encode()
        return chat_job(parse(ChatRequest, body, None, SERVER_CONTEXT.settings).request, SERVER_CONTEXT)

    parts = [{"type": "text", "text": "a"}]
    plain = chat(seed=1).sequences[0].request
    for content in ("a b", parts):
        asked = judged({"type": "content", "content": content}).sequences[0].request
        ids = SERVER_CONTEXT.tokenizer.encode("".join(part["text"] for part in parts) if content is parts else content)
        assert asked.sampling == replace(plain.sampling, prediction_ids=tuple(ids)) and ids
        assert asked.prompt_ids == plain.prompt_ids
        silent = judged({"type": "content", "content": content}, speculation=False).sequences[0].request
        assert silent.sampling == replace(plain.sampling, speculation=False)
        many = judged({"type": "content", "content": "a " * (CONTEXT // 4)}, n=8, max_tokens=1).sequences
        assert len(many) == 8 and not any(each.request.sampling.prediction_ids for each in many), (
            "each would take it along"
        )
    too_long = {"type": "content", "content": "a " * SERVER_CONTEXT.info().context}
    assert refused(lambda: judged(too_long)).param == "prediction.content"
    for prediction, param in (
        ({"type": "content"}, "prediction.content"),
        ({"type": "draft", "content": "a"}, "prediction.type"),
        ({"type": "content", "content": [{"type": "image"}]}, "prediction.content[0].type"),
        ("a", "prediction"),
    ):
        assert refused(lambda prediction=prediction: judged(prediction)).param == param


def test_sequences_of_one_request_are_bounded():
    context = Server(max_prompts=4, max_n=3).context
    assert len(complete(context, prompt=["a", "b"], n=2).sequences) == 4
    error = refused(complete, context=context, prompt=["a", "b"], n=3)
    assert error.param == "n" and "at most 4" in error.message and "3 x 2" in error.message


def test_stream_options_need_a_stream():
    assert refused(complete, stream_options={}).param == "stream_options"
    options = {"continuous_usage_stats": True}
    error = refused(complete, stream=True, stream_options=options)
    assert error.param == "stream_options.continuous_usage_stats"


def prompt_of(context=SERVER_CONTEXT, **fields):
    return chat(context, **fields).sequences[0].prompt.text


def test_chat_prompts():
    assert prompt_of() == PROMPT
    developer = [{"role": "developer", "content": "x"}, USER]
    assert prompt_of(messages=developer).startswith("<|im_start|>system\nx<|im_end|>")
    assert prompt_of(add_generation_prompt=False) == PROMPT.removesuffix("<|im_start|>assistant\n")
    unfinished = [USER, {"role": "assistant", "content": "Well"}]
    assert prompt_of(messages=unfinished, continue_final_message=True).endswith("<|im_start|>assistant\nWell")
    assert prompt_of(chat_template_kwargs={"suffix": "!"}).endswith("!")


def test_chat_templates_refuse():
    assert refused(chat, add_generation_prompt=True, continue_final_message=True).param == "add_generation_prompt"
    error = refused(chat, chat_template_kwargs={"messages": []})
    assert error.param == "chat_template_kwargs.messages"
    raising = Server(template="{{ raise_exception('roles must alternate') }}").context
    error = refused(chat, context=raising)
    assert error.param == "messages" and "roles must alternate" in error.message
    assert "no chat template" in refused(chat, context=Server(template=None).context).message


def test_nothing_is_valid_before_the_engine_was_ready():
    context = Server(ready=False).context
    assert int(refused(complete, Unavailable, context=context).headers["Retry-After"]) >= 1
