import json
from pathlib import Path

import pytest

from configs.model.gguf_header import read_gguf_header
from configs.model.source import resolve_model
from server.text.gguf_tokenizer import from_gguf_metadata

PROMPTS = Path(__file__).parents[2] / "data" / "prompts.jsonl"


@pytest.fixture(scope="session")
def metadata():
    """GGUF metadata of the embedded model."""
    return read_gguf_header(resolve_model(None).path).metadata


@pytest.fixture(scope="session")
def smollm(metadata):
    return from_gguf_metadata(metadata)


@pytest.fixture(scope="session")
def prompts():
    return [json.loads(line)["prompt"] for line in PROMPTS.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="session")
def published(metadata, tmp_path_factory):
    """A folder as Hugging Face publishes SmolLM2: the file's vocabulary, and the published tokenizer.json around it."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    description = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": token, **flags}
            for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
            if kind == 3
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": list(metadata["tokenizer.ggml.merges"]),
        },
    }
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
        "chat_template": metadata["tokenizer.chat_template"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    folder = tmp_path_factory.mktemp("smollm2")
    (folder / "tokenizer.json").write_text(json.dumps(description), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def reference(published):
    """transformers' own tokenizer of that folder."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(published)
