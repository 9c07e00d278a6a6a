"""Tiny random encoders saved by transformers, with a WordPiece tokenizer and sentence-transformers' files."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedModel

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = [
    "the",
    "cat",
    "dog",
    "sat",
    "on",
    "a",
    "mat",
    "red",
    "blue",
    "##s",
    "##ing",
    "run",
    "walk",
    "where",
    "is",
    ",",
    ".",
    "?",
]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
VOCABULARY = [*_SPECIAL, *_WORDS, *_LETTERS[1:], *(f"##{letter}" for letter in _LETTERS if letter != "s")]
SIZES = {"vocab_size": len(VOCABULARY), "max_position_embeddings": 48}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, **SIZES}
DISTIL = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, **SIZES}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": {**BERT, "pad_token_id": 1, "type_vocab_size": 1},
    "XLMRoberta": {**BERT, "pad_token_id": 1, "type_vocab_size": 1, "hidden_act": "gelu_new"},
    "DistilBert": DISTIL,
}


def tiny_encoder(kind: str, head: str = "Model", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """An encoder with weights large enough for its vectors to differ."""
    config = getattr(transformers, f"{kind}Config")(**(KINDS[kind] | changes))
    model = getattr(transformers, f"{kind}{head}")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        mean = 1.0 if "norm" in key.lower() and key.endswith("weight") else 0.0
        parameter.data.normal_(mean, 0.2, generator=generator)
    return model


def word_pieces() -> Tokenizer:
    """BERT's kind of tokenizer over `VOCABULARY`."""
    vocabulary = {word: i for i, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
    )
    return tokenizer


def sentence_files(folder: Path, mode: str = "mean_tokens", *, normalize: bool = True, **prompts: Any) -> None:
    """What sentence-transformers writes beside a model; `prompts` are the keys of its own config."""
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    listed = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def save_encoder(model: PreTrainedModel, folder: Path) -> Path:
    """The model with its tokenizer."""
    model.save_pretrained(folder)
    word_pieces().save(str(folder / "tokenizer.json"))
    return folder
