"""`echo`: the prompt in front of the answer, as the client wrote it."""

from tests.server.api.answers.test_formats import COMPLETIONS, exchange
from tests.server.api.scripted import END, START, Server, run


def test_echo_of_completions():
    _, _, answer = exchange(COMPLETIONS, reply="xy", prompt="abc", echo=True, logprobs=1, max_tokens=2)
    choice = answer["choices"][0]
    assert choice["text"] == "abcxy"
    assert choice["logprobs"] == {
        "tokens": ["a", "b", "c", "x", "y"],
        "token_logprobs": [None, -0.5, -0.5, -0.5, -0.5],
        "top_logprobs": [
            None,
            {"c": -0.25, "b": -0.5},
            {"d": -0.25, "c": -0.5},
            {"y": -0.25, "x": -0.5},
            {"z": -0.25, "y": -0.5},
        ],
        "text_offset": [0, 1, 2, 3, 4],
    }


def test_echo_gives_a_text_back_as_it_was_and_ids_as_their_text():
    text = "a<|im_end|>é"
    _, _, answer = exchange(COMPLETIONS, reply="x", prompt=text, echo=True, logprobs=0, max_tokens=1, bos=True)
    choice = answer["choices"][0]
    assert choice["text"] == f"{text}x"
    assert choice["logprobs"]["tokens"][:3] == ["<|im_start|>", "a", "<|im_end|>"]
    assert choice["logprobs"]["text_offset"] == [0, 0, 1, 11, 11, 12]
    _, _, answer = exchange(COMPLETIONS, reply="x", prompt=[START, 97], echo=True, max_tokens=1)
    assert answer["choices"][0]["text"] == "<|im_start|>ax"
    ids = [START, *b"a", END, *"é".encode()]
    assert len(run(lambda: Server(bos=True).post("/tokenize", {"prompt": text})).json()["tokens"]) == len(ids)
    _, _, answer = exchange(COMPLETIONS, reply="x", prompt=ids, echo=True, logprobs=0, max_tokens=1)
    assert answer["choices"][0]["text"] == f"<|im_start|>{text}x"
    assert answer["choices"][0]["logprobs"]["text_offset"] == [0, 12, 13, 23, 23, 24]
