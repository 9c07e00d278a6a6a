"""The draft model's tokens against the model's: read from GGUF headers and Hugging Face folders, the first difference is named."""

import json

import numpy as np
import pytest
from gguf import GGUFWriter

from configs.model.source import ModelError, ModelSource, resolve_model
from configs.settings import Settings
from engine.drafting.draft_files import check_same_tokens, find_draft, token_texts

NORMAL, CONTROL, UNUSED = 1, 3, 5
TEXTS = ["<s>", "a", "b", "Ġwater", "wheel"]


@pytest.fixture
def gguf(tmp_path):
    """A file that has tokens and next to nothing else."""

    def write(name, texts, types=None):
        path = tmp_path / f"{name}.gguf"
        writer = GGUFWriter(path, "llama")
        writer.add_token_list(texts)
        writer.add_token_types(types or [NORMAL] * len(texts))
        writer.add_tensor("token_embd.weight", np.zeros((4, 32), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return ModelSource(path=path, kind="gguf", name=name)

    return write


@pytest.fixture
def folder(tmp_path):
    def write(name, vocabulary, added=()):
        path = tmp_path / name
        path.mkdir()
        tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": i, "content": text} for i, text in added]}
        (path / "tokenizer.json").write_text(json.dumps(tokenizer))
        return ModelSource(path=path, kind="hf", name=name)

    return write


def test_the_same_tokens_in_a_file_and_in_a_folder(gguf, folder):
    file = gguf("big", TEXTS)
    other = folder("small", {text: i for i, text in enumerate(TEXTS) if i}, [(0, "<s>")])
    assert list(token_texts(file)) == list(token_texts(other)) == TEXTS
    check_same_tokens(file, other)
    check_same_tokens(other, file)
    unigram = folder("pairs", [[text, -1.0] for text in TEXTS])
    check_same_tokens(file, unigram)


def test_what_fills_up_a_vocabulary_is_no_token(gguf):
    filled = gguf("filled", [*TEXTS, "[PAD5]", "[PAD6]"], [CONTROL, *[NORMAL] * 4, UNUSED, UNUSED])
    assert list(token_texts(filled))[-3:] == ["wheel", None, None]
    check_same_tokens(filled, gguf("short", TEXTS))
    check_same_tokens(filled, gguf("other", [*TEXTS, "<pad>"], [NORMAL] * 5 + [UNUSED]))


def test_the_first_token_that_differs_is_named(gguf, folder):
    model = gguf("big", TEXTS)
    swapped = gguf("small", [*TEXTS[:2], "Ġwater", "b", "other"])
    with pytest.raises(
        ModelError, match=r"--draft-model small has other tokens than big: token 2 is 'Ġwater' there and 'b' here"
    ):
        check_same_tokens(model, swapped)
    with pytest.raises(ModelError, match="draft-model nameless cannot be held against big: nameless does not say"):
        check_same_tokens(model, folder("nameless", {}))
    with pytest.raises(ModelError, match="draft-model big cannot be held against bare: bare does not say"):
        check_same_tokens(folder("bare", {}), model)


def test_the_settings_name_a_draft_or_none(smollm2_source, gguf, tmp_path):
    assert find_draft(Settings(), smollm2_source) is None
    same = find_draft(Settings(draft_model=str(smollm2_source.path)), smollm2_source)
    assert same.source.path == smollm2_source.path and same.config.vocab_size == 49152
    with pytest.raises(ModelError, match="no such model file"):
        find_draft(Settings(draft_model=str(tmp_path / "none.gguf")), smollm2_source)


def test_every_model_that_is_found_is_held_against_the_first(smollm2_source, tiny_model):
    with pytest.raises(ModelError, match="does not say what its tokens are"):
        find_draft(Settings(draft_model=str(tiny_model("llama")[1])), smollm2_source)
    folder = tiny_model("llama")[1]
    assert find_draft(Settings(draft_model=str(folder)), resolve_model(str(folder))).config.vocab_size == 320
