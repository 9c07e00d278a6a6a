"""The tokens that end an answer: the union of what all files of a model say, whichever of them knows."""

import json
from dataclasses import replace

import pytest

from configs.model.ends import SPELLINGS, describe_ends, gguf_ends, read_token_names
from configs.model.gguf_header import read_gguf_header
from configs.model.source import ModelError, ModelSource
from engine.models.registry import read_config, read_gguf_config
from server.text import load_tokenizer
from tests.configs.model.test_config import LLAMA, of_gguf
from tests.server.api.scripted import byte_tokenizer

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
KEY = "tokenizer.ggml."


def of(ends):
    return {end.token_id: (end.text, *end.origins) for end in ends}


# --- GGUF ------------------------------------------------------------------------------------------------------------


def vocabulary(*entries, **keys):
    """Metadata with these control tokens (or pairs of token and type), from id 3 on."""
    pairs = [("<unk>", 2), ("a", NORMAL), ("<end>", CONTROL)]
    pairs += [entry if isinstance(entry, tuple) else (entry, CONTROL) for entry in entries]
    tokens, types = map(list, zip(*pairs, strict=True))
    return {KEY + key: value for key, value in {"tokens": tokens, "token_type": types, **keys}.items()}


def ends_of(*entries, **keys):
    return of(gguf_ends(vocabulary(*entries, **keys), "m.gguf", 320))


def test_the_embedded_model_ends_its_turns_whatever_its_file_calls_the_end(smollm2_source):
    header = read_gguf_header(smollm2_source.path)
    for said, expected in {0: (0, 2), 2: (2, 0), None: (2, 0)}.items():
        metadata = header.metadata | {KEY + "eos_token_id": said}
        config = read_gguf_config(replace(header, metadata=metadata))
        assert config.eos_token_ids == expected
    header.metadata[KEY + "eos_token_id"] = 0
    assert (
        describe_ends(read_gguf_config(header).ends)
        == "0 <|endoftext|> (eos_token_id, its spelling); 2 <|im_end|> (its spelling)"
    )


def test_every_key_of_a_gguf_file_counts():
    assert ends_of(eos_token_id=2) == {2: ("<end>", "eos_token_id")}
    assert ends_of("x", "y", eos_token_id=2, eot_token_id=3, eom_token_id=4) == {
        2: ("<end>", "eos_token_id"), 3: ("x", "eot_token_id"), 4: ("y", "eom_token_id"),
    }  # fmt: skip
    assert ends_of("x", eos_token_ids=[2, 3, 2], eot_token_id=3) == {
        2: ("<end>", "eos_token_ids"), 3: ("x", "eos_token_ids", "eot_token_id"),
    }  # fmt: skip
    assert ends_of("<|eot_id|>", eos_token_id=3) == {3: ("<|eot_id|>", "eos_token_id", "its spelling")}
    assert ends_of() == {}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_known_spelling_counts_where_it_is_a_control_token(spelling):
    assert ends_of(spelling, eos_token_id=2)[3] == (spelling, "its spelling")
    for kind in (NORMAL, USER_DEFINED):
        assert list(ends_of((spelling, kind), eos_token_id=2)) == [2]


def test_an_end_of_a_message_is_none_of_an_answer_that_has_several():
    assert list(ends_of("<|end|>", eos_token_id=2)) == [2, 3]
    assert list(ends_of("<|end|>", "<|return|>", eos_token_id=2)) == [2, 3, 4]
    assert list(ends_of("<|end|>", "<|return|>", "<|call|>", eos_token_id=2)) == [2, 4, 5]


def test_what_the_model_cannot_produce_is_no_end():
    metadata = vocabulary("<|im_end|>", eos_token_id=2)
    assert list(of(gguf_ends(metadata, "m.gguf", 3))) == [2]
    with pytest.raises(ModelError, match=r"token 320 \(eot_token_id\), is outside the vocabulary of 320"):
        of_gguf({KEY + "eot_token_id": 320})
    with pytest.raises(ModelError, match=r"eot_token_id is 'x', not a token id"):
        of_gguf({KEY + "eot_token_id": "x"})


@pytest.mark.parametrize(
    ("turn", "text", "generation"), [("<|im_end|>", "<|endoftext|>", [3, 4]), ("<|eot_id|>", "<|end_of_text|>", [4, 3])]
)
def test_a_gguf_file_ends_answers_where_its_folder_does(folder, turn, text, generation):
    """The one names a single token; the published generation_config.json of the other lists both."""
    plain_vocabulary = {"added_tokens": [{"id": 3, "content": turn}, {"id": 4, "content": text}]}
    write(folder, "tokenizer", **plain_vocabulary)
    write(folder, "config", **LLAMA | {"eos_token_id": 3})
    write(folder, "generation_config", eos_token_id=generation)
    assert set(ends_in(folder)) == set(ends_of(turn, text, eos_token_id=3)) == {3, 4}


@pytest.mark.parametrize(
    "broken",
    [
        {"tokens": None},
        {"tokens": [3]},
        {"tokens": [[]] * 4, "token_type": [3] * 4},
        {"token_type": "x"},
        {"token_type": [3]},
    ],
)
def test_a_broken_vocabulary_is_left_to_its_reader(broken):
    assert list(ends_of("<|im_end|>", eos_token_id=2, **broken)) in ([2], [2, 3])


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A tokenizer with `<|im_start|>` 256 and `<|im_end|>` 257, both control tokens, and a model that names neither."""
    byte_tokenizer()._backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return tmp_path


def write(folder, name, **content):
    (folder / f"{name}.json").write_text(json.dumps(content))


def edit(folder, change):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def plain(content):
    """No token is a control token."""
    for token in content["added_tokens"]:
        token["special"] = False


def ends_in(folder):
    return of(read_config(ModelSource(folder, "hf", "m")).ends)


def test_all_files_of_a_folder_count(folder):
    write(folder, "generation_config", eos_token_id=[5, 257])
    write(folder, "tokenizer_config", eos_token={"content": "<|im_start|>", "special": True})
    write(folder, "special_tokens_map", eos_token="<|im_end|>")
    assert ends_in(folder) == {
        5: ("\u0105", "generation_config.json"),
        257: ("<|im_end|>", "generation_config.json", "special_tokens_map.json", "its spelling"),
        2: ("\u0102", "config.json"),
        256: ("<|im_start|>", "tokenizer_config.json"),
    }


@pytest.mark.parametrize("key", ["eos_token", "eot_token", "eom_token"])
@pytest.mark.parametrize("token", ["b", {"content": "b", "lstrip": False}])
def test_an_end_that_only_the_tokenizer_names(folder, key, token):
    edit(folder, plain)
    write(folder, "tokenizer_config", **{key: token})
    assert ends_in(folder) == {2: ("\u0102", "config.json"), ord("b"): ("b", "tokenizer_config.json")}


def test_the_control_tokens_of_a_folder(folder):
    assert list(ends_in(folder)) == [2, 257]
    edit(folder, plain)
    assert list(ends_in(folder)) == [2]
    for key in ("additional_special_tokens", "extra_special_tokens"):
        write(folder, "tokenizer_config", **{key: ["<|im_end|>", {"content": "<none>"}]})
        assert list(ends_in(folder)) == [2, 257]
    write(folder, "tokenizer_config", extra_special_tokens={"turn_token": "<|im_end|>"})
    assert list(ends_in(folder)) == [2, 257]
    write(folder, "tokenizer_config")
    write(folder, "special_tokens_map", additional_special_tokens=["<|im_end|>"])
    assert list(ends_in(folder)) == [2, 257]
    (folder / "special_tokens_map.json").unlink()
    declared = {"258": {"content": "<|eot_id|>", "special": True}, "259": {"content": "<|eom_id|>", "special": False}}
    write(folder, "tokenizer_config", added_tokens_decoder=declared)
    assert ends_in(folder) == {2: ("\u0102", "config.json"), 258: ("<|eot_id|>", "its spelling")}
    assert load_tokenizer(folder).encode("<|eot_id|>") == [258]


def test_every_end_of_a_folder_is_the_tokenizers_token(folder):
    write(folder, "tokenizer_config", eos_token="<|im_end|>", eot_token="<|im_start|>")
    tokenizer, ends = load_tokenizer(folder), ends_in(folder)
    assert list(ends) == [2, 257, 256]
    for token_id in (257, 256):
        assert tokenizer.encode(ends[token_id][0]) == [token_id]


def test_a_unigram_vocabulary_lists_its_entries(folder):
    def unigram(content):
        content["added_tokens"], content["model"] = [], {"type": "Unigram", "vocab": [["<unk>", 0.0], ["</s>", 0.0], 3]}

    edit(folder, unigram)
    write(folder, "tokenizer_config", eos_token="</s>")
    assert list(ends_in(folder)) == [2, 1]


def test_a_token_that_the_model_has_no_row_for(folder):
    write(folder, "config", **LLAMA | {"vocab_size": 257})
    write(folder, "tokenizer_config", eos_token="<|im_end|>")
    assert list(ends_in(folder)) == [2]


def test_no_tokenizer_and_no_end(tmp_path):
    write(tmp_path, "config", **LLAMA | {"eos_token_id": None})
    assert ends_in(tmp_path) == {}
    assert describe_ends(()) == "none is known: only `max_tokens`, `stop` and `stop_token_ids` end an answer"


ODD = [
    3,
    True,
    None,
    "x",
    [],
    {},
    [3],
    [None],
    [{}],
    [{"id": "x", "content": "a"}],
    {"a": 3},
    {"1": {}},
    {"x": {"content": "a"}},
]


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_files_of_any_content_say_nothing_or_are_refused(folder, value):
    for key in ("eos_token", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
        write(folder, "tokenizer_config", **{key: value})
        assert set(ends_in(folder)) <= {2, 257, ord("x"), ord("a")}
    (folder / "tokenizer_config.json").unlink()
    for key in ("added_tokens", "model"):
        write(folder, "tokenizer", **{key: value})
        assert list(ends_in(folder)) == [2]
    write(folder, "tokenizer", model={"vocab": value})
    assert list(ends_in(folder)) == [2]
    (folder / "tokenizer.json").write_text("[")
    with pytest.raises(ModelError, match=r"tokenizer\.json"):
        read_token_names(folder)
