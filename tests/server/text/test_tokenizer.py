"""Ids and text equal transformers' for the default model, and every token's bytes are right."""

import json
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from configs.model.source import ModelError, resolve_model
from server.text import load_tokenizer
from server.text.tokenizer import Tokenizer, TokenizerError, byte_alphabet, load_folder
from tests.drawn import drawn

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"]
TRICKY = [
    "a  12 b",
    "x\n 12",
    "don't  stop\n\n\n",
    " 2024年 ",
    "tab\t\tend ",
    "🎉👨‍👩‍👧",
    "e\u0301",
    "\ufffd",
    "\u00a0x\u3000y",
    "½²Ⅷ",
]

any_text = st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL + TRICKY)), max_size=8).map("".join)


def test_prompts_as_transformers(smollm, reference, prompts):
    for text in [*prompts, *TRICKY]:
        ids = smollm.encode(text)
        assert ids == reference.encode(text)
        assert smollm.decode(ids) == text


@given(text=any_text)
@settings(max_examples=drawn(200))
def test_any_text_as_transformers(smollm, reference, text):
    ids = smollm.encode(text)
    assert ids == reference.encode(text)
    # not `== text`: the vocabulary has no entry for bytes that its training text never held (0xF1, for one)
    assert smollm.decode(ids, skip_special_tokens=False) == reference.decode(ids, clean_up_tokenization_spaces=False)


@given(ids=st.lists(st.integers(0, 49151), max_size=40), skip=st.booleans())
@settings(max_examples=drawn(300))
def test_any_ids_decode_as_transformers(smollm, reference, ids, skip):
    expected = reference.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    assert smollm.decode(ids, skip_special_tokens=skip) == expected


def test_a_folder_gives_the_same_tokenizer_as_the_gguf_file(smollm, published, prompts):
    folder = load_tokenizer(published)
    assert [folder.encode(text) for text in prompts] == [smollm.encode(text) for text in prompts]
    assert folder.special_tokens == smollm.special_tokens
    assert folder.model_chat_template == smollm.model_chat_template


def test_the_longest_token(smollm):
    sizes = [len(smollm.token_bytes(token)) for token in range(49152)]
    assert smollm.longest_token == max(sizes) > 60


def test_a_gguf_path_is_loaded_by_its_header(prompts, smollm):
    loaded = load_tokenizer(resolve_model(None).path)
    assert loaded.encode(prompts[0]) == smollm.encode(prompts[0])


def test_special_tokens_in_text_are_special(smollm):
    ids = smollm.encode("a<|im_end|>b")
    assert ids[1] == 2 and 2 in smollm.special_ids
    assert smollm.decode(ids) == "ab"
    assert smollm.decode(ids, skip_special_tokens=False) == "a<|im_end|>b"


def test_token_bytes_join_to_the_text(smollm, prompts):
    for text in [*prompts, *TRICKY]:
        assert b"".join(smollm.token_bytes(i) for i in smollm.encode(text)) == text.encode()


def test_token_text_names_parts_of_characters_by_their_bytes(smollm):
    ids = smollm.encode("🎉")
    assert len(ids) > 1
    assert "".join(smollm.token_text(i) for i in ids).replace("bytes:", "") == r"\xf0\x9f\x8e\x89"
    assert smollm.token_text(2) == "<|im_end|>"
    assert smollm.token_text(smollm.encode(" the")[0]) == " the"


def test_ids_outside_the_vocabulary_have_no_text(smollm):
    for outside in (-1, 49152, 2**31 - 1):
        assert smollm.token_bytes(outside) == b""
    assert smollm.decode([smollm.encode("a")[0], 60000]) == "a"


def test_byte_alphabet_is_gpt2s():
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == sorted(pre_tokenizers.ByteLevel.alphabet())
    assert (alphabet[ord(" ")], alphabet[ord("\n")], alphabet[ord("a")]) == ("Ġ", "Ċ", "a")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, published):
    copy = tmp_path / "model"
    shutil.copytree(published, copy)
    return copy


def edit(path, **changes):
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | changes))


def test_special_tokens_as_objects_and_from_the_older_map(folder):
    (folder / "tokenizer_config.json").unlink()
    edit(
        folder / "special_tokens_map.json",
        eos_token={"content": "<|im_end|>", "lstrip": False},
        bos_token="<|im_start|>",
    )
    loaded = load_folder(folder)
    assert loaded.special_tokens == {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"}
    assert loaded.model_chat_template is None


def test_a_named_eos_is_special_though_the_vocabulary_says_not(folder):
    description = json.loads((folder / "tokenizer.json").read_text())
    for token in description["added_tokens"]:
        token["special"] = False
    (folder / "tokenizer.json").write_text(json.dumps(description))
    loaded = load_folder(folder)
    assert 2 in loaded.special_ids and 5 not in loaded.special_ids


def test_tokens_that_only_the_config_declares_are_added(folder, reference):
    declared = {"49152": {"content": "<think>", "special": False}, "49153": {"content": "<|tool|>", "special": True}}
    edit(folder / "tokenizer_config.json", added_tokens_decoder=declared)
    loaded = load_folder(folder)
    assert loaded.encode("<think><|tool|>") == [49152, 49153]
    assert 49152 not in loaded.special_ids and 49153 in loaded.special_ids
    assert loaded.decode([49152, 49153]) == "<think>"


def test_truncation_and_padding_of_the_file_are_off(folder):
    description = json.loads((folder / "tokenizer.json").read_text())
    description["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(description))
    assert len(load_folder(folder).encode("one two three four five")) > 2


def test_the_template_file_beats_the_config(folder):
    (folder / "chat_template.jinja").write_text("from the file")
    assert load_folder(folder).model_chat_template == "from the file"


@pytest.mark.parametrize(
    ("templates", "expected"),
    [
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "chat", "template": "C"}], "C"),
        ([{"name": "a", "template": "A"}, {"name": "b", "template": "B"}], None),
        (None, None),
    ],
)
def test_the_config_may_list_templates(folder, templates, expected):
    edit(folder / "tokenizer_config.json", chat_template=templates)
    assert load_folder(folder).model_chat_template == expected


def test_refusals_name_the_cause(tmp_path):
    with pytest.raises(TokenizerError, match=r"no tokenizer\.json; write one with transformers"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelError):
        load_tokenizer(tmp_path / "model.gguf")


@pytest.mark.parametrize("content", ["[1]", "{broken"])
def test_a_broken_config_is_refused(folder, content):
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(TokenizerError, match="tokenizer_config"):
        load_folder(folder)


@pytest.mark.parametrize("decoder", [None, decoders.BPEDecoder(), decoders.CTC()])
def test_an_unknown_decoder_is_refused(decoder):
    backend = Backend(models.WordLevel({"a": 0}))
    if decoder is not None:
        backend.decoder = decoder
    with pytest.raises(TokenizerError, match="known are ByteLevel, WordPiece"):
        Tokenizer(backend, {})
