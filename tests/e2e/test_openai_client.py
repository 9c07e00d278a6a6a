"""The official client against the real server: what it sends is understood, what it gets it can read."""

import openai
import pytest

pytestmark = pytest.mark.processes

MODEL = "SmolLM2-135M-Instruct"
CHAT = [{"role": "user", "content": "Name three rivers."}]


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_completion(client):
    answer = client.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0)
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 4)


def test_several_prompts_and_token_ids_give_the_same_answers(client, smollm2_tokenizer):
    texts = ["The capital of France is", "One two three"]
    ids = [smollm2_tokenizer.encode(text) for text in texts]
    settings = {"model": MODEL, "max_tokens": 8, "temperature": 0}
    by_text = client.completions.create(prompt=texts, **settings)
    by_ids = client.completions.create(prompt=ids, **settings)
    alone = [client.completions.create(prompt=text, **settings).choices[0].text for text in texts]
    assert [c.text for c in by_text.choices] == [c.text for c in by_ids.choices] == alone
    assert [c.index for c in by_text.choices] == [0, 1]


def test_chat_streamed_equals_whole(client):
    settings = {"model": MODEL, "messages": CHAT, "max_tokens": 30, "temperature": 0}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **settings))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 30


def test_a_prediction_is_taken_over_where_it_is_right_and_changes_no_answer(client, server):
    settings = {"model": MODEL, "messages": CHAT, "max_tokens": 60, "temperature": 0}
    plain = client.chat.completions.create(extra_body={"speculation": False}, **settings)
    answer = plain.choices[0].message.content
    for text in ("What is a river to a stone?" * 20, answer[len(answer) // 2 :], *[answer] * 20):
        predicted = client.chat.completions.create(prediction={"type": "content", "content": text}, **settings)
        assert predicted.choices[0].message.content == answer
        details = predicted.usage.completion_tokens_details
        if text is answer and details.accepted_prediction_tokens:
            break  # how soon guesses pay is measured, on whatever else this machine does
    assert details.accepted_prediction_tokens > 0
    assert plain.usage.completion_tokens_details.accepted_prediction_tokens == 0
    figures = server.metrics()
    accepted = sum(value for name, value in figures.items() if "speculation_accepted_tokens_total" in name)
    assert 0 < accepted <= sum(value for name, value in figures.items() if "speculation_proposed_tokens_total" in name)


def test_n_choices_with_a_seed_are_reproducible_and_differ(client):
    settings = {"model": MODEL, "messages": CHAT, "max_tokens": 20, "n": 3, "seed": 7, "temperature": 1.0}
    first, second = (client.chat.completions.create(**settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3


def test_beam_search(client):
    """Its best text is at least as likely as the greedy one, and each is what its log probabilities say."""
    asked = {"model": MODEL, "prompt": "Three rivers are the", "max_tokens": 6, "temperature": 0, "logprobs": 1}
    greedy = client.completions.create(**asked).choices[0]
    search = {"use_beam_search": True, "length_penalty": 0.0, "stop_token_ids": []}
    found = client.completions.create(n=2, best_of=3, extra_body=search, **asked)
    scores = [sum(choice.logprobs.token_logprobs) for choice in (*found.choices, greedy)]
    assert scores == sorted(scores, reverse=True)
    assert found.usage.completion_tokens == 12 and found.choices[0].text != found.choices[1].text
    assert "".join(found.choices[1].logprobs.tokens) == found.choices[1].text
    with pytest.raises(openai.BadRequestError, match="`stream` must be false with `use_beam_search`, got true"):
        client.completions.create(stream=True, extra_body=search, **asked)


def test_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 5
    for entry in entries:
        assert entry.logprob == max(top.logprob for top in entry.top_logprobs)
        assert len(entry.top_logprobs) == 3
    text = b"".join(bytes(entry.bytes) for entry in entries).decode()
    assert text == answer.choices[0].message.content


def test_completion_logprobs_with_echo(client):
    answer = client.completions.create(
        model=MODEL, prompt="One two three four", max_tokens=2, temperature=0, logprobs=2, echo=True
    )
    logprobs = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith("One two three four")
    assert logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert len(logprobs.tokens) == answer.usage.prompt_tokens + 2


def test_stop_string(client):
    settings = {"model": MODEL, "prompt": "1, 2, 3, 4,", "max_tokens": 40, "temperature": 0}
    free = client.completions.create(**settings).choices[0].text
    assert " 8" in free
    cut = client.completions.create(stop=[" 8"], **settings)
    assert cut.choices[0].text == free[: free.index(" 8")]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < 40


def test_errors_are_the_clients_own_classes(client):
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.completions.create(model=MODEL, prompt="x", temperature=9)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="modalities"):
        client.chat.completions.create(model=MODEL, messages=CHAT, modalities=["text", "audio"])
    with pytest.raises(openai.BadRequestError, match="8192"):
        client.completions.create(model=MODEL, prompt="x", max_tokens=9000)


def test_extensions(client):
    extra = {"top_k": 1, "ignore_eos": True, "min_tokens": 3, "return_token_ids": True}
    sampled = client.completions.create(model=MODEL, prompt="Hello", max_tokens=6, temperature=1.5, extra_body=extra)
    greedy = client.completions.create(model=MODEL, prompt="Hello", max_tokens=6, temperature=0, extra_body=extra)
    assert sampled.choices[0].text == greedy.choices[0].text


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL


def test_leaving_a_stream_frees_everything(client, server):
    stream = client.completions.create(
        model=MODEL, prompt="Once upon a time", max_tokens=4000, stream=True, extra_body={"ignore_eos": True}
    )
    for _ in range(3):
        next(stream)
    stream.close()
    metrics = server.wait_idle()
    assert metrics['headrace_kv_blocks{state="used"}'] == 0
    assert metrics["headrace_integrity_failures_total"] == 0
