"""Which tokens end an answer, and what says so of each. Read from headers and JSON files only.

The files of one model often disagree. A converter names the base model's end of text where the chat model ends its turns with
another token; a folder's `config.json` knows fewer tokens than its tokenizer. A model that is not stopped at the end of its turn
goes on and invents the next one, and none of these tokens is ever wanted inside an answer, so all of them count.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.model.fields import Fields, read_json
from configs.model.gguf_file import GgufTexts

SPELLING = "its spelling"

# The ends of a turn, of a message that waits for a tool, and of a text, as the families spell them: llama.cpp's list and some more.
# They count where they are control tokens.
SPELLINGS = (
    "<|im_end|>",  # ChatML: Qwen, SmolLM, Yi, Phi-4, Kimi
    "<|eot_id|>",  # Llama 3, and its end of a message
    "<|eom_id|>",
    "<|eot|>",  # Llama 4, likewise
    "<|eom|>",
    "<end_of_turn>",  # Gemma 2 and 3
    "<turn|>",  # Gemma 4
    "<|end|>",  # Phi-3
    "<|return|>",  # gpt-oss: of an answer, and of a call of a tool
    "<|call|>",
    "<|end_of_turn|>",  # OpenChat, Starling
    "<|END_OF_TURN_TOKEN|>",  # Command R
    "<|endofturn|>",  # HyperCLOVA X
    "[|endofturn|]",  # EXAONE
    "<end_of_utterance>",  # SmolVLM
    "<|role_end|>",  # Ling
    "<|EOT|>",  # DeepSeek Coder
    "<EOT>",
    "\u2581<EOT>",  # Code Llama
    "[EOT]",
    "<|endoftext|>",  # GPT-2, Qwen, SmolLM: between two texts of pre-training; chat models still write it, and name another
    "<|end_of_text|>",  # Llama 3, Granite, likewise
    "</s>",  # Llama 2, Mistral, and models made of them that speak ChatML
    "<eos>",  # Gemma
    "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek
)
_MESSAGE_END, _ANSWER_ENDS = "<|end|>", ("<|return|>", "<|call|>")

_CONTROL = 3  # of `tokenizer.ggml.token_type`
_GGUF_IDS = ("eos_token_id", "eos_token_ids", "eot_token_id", "eom_token_id")
_EXTRA_NAMES = ("additional_special_tokens", "extra_special_tokens")
_FOLDER_NAMES = ("eos_token", "eot_token", "eom_token")

Named = tuple[str, Iterable[int]]  # who says so, of which tokens


@dataclass(frozen=True, slots=True)
class EndToken:
    """One token that ends an answer; `origins` are the files and keys that say so."""

    token_id: int
    text: str | None
    origins: tuple[str, ...]

    def __str__(self) -> str:
        spelled = "" if self.text is None else f" {self.text}"
        return f"{self.token_id}{spelled} ({', '.join(self.origins)})"


def describe_ends(ends: Sequence[EndToken]) -> str:
    """One line for people."""
    return "; ".join(map(str, ends)) or "none is known: only `max_tokens`, `stop` and `stop_token_ids` end an answer"


def _no_text(token_id: int) -> str | None:
    del token_id
    return None


@dataclass(frozen=True, slots=True)
class TokenNames:
    """What a model's tokenizer says of its tokens.

    Attributes:
        named: the ends that its files name.
        control: its control tokens.
        text_of: how a token is spelled; None for an id without an entry.
    """

    named: tuple[Named, ...] = ()
    control: Mapping[str, int] = field(default_factory=dict)
    text_of: Callable[[int], str | None] = _no_text

    def end_tokens(self, named: Iterable[Named], vocab_size: int) -> tuple[EndToken, ...]:
        """The union of what `named` says, what this says, and of the spellings, in this order.

        The model cannot produce a token from `vocab_size` on. Tokenizers have such tokens, and they are left out; one that `named`
        has is kept, for `ModelConfig` to refuse.
        """
        origins: dict[int, list[str]] = {}
        own = [(origin, [token for token in ids if 0 <= token < vocab_size]) for origin, ids in self._own()]
        for origin, ids in (*named, *own):
            for token_id in dict.fromkeys(ids):
                origins.setdefault(token_id, []).append(origin)
        return tuple(EndToken(token_id, self.text_of(token_id), tuple(who)) for token_id, who in origins.items())

    def _own(self) -> Iterable[Named]:
        yield from self.named
        spelled = [text for text in SPELLINGS if text in self.control]
        if all(text in spelled for text in _ANSWER_ENDS):  # there, it ends a message of several in one answer
            spelled = [text for text in spelled if text != _MESSAGE_END]
        yield SPELLING, [self.control[text] for text in spelled]


def gguf_ends(metadata: Mapping[str, Any], file: str, vocab_size: int) -> tuple[EndToken, ...]:
    """The tokens that end an answer of a GGUF file.

    Raises:
        ModelError: a key holds something else than token ids.
    """
    fields = Fields(dict(metadata), file)
    named = [(key, fields.tokens(f"tokenizer.ggml.{key}")) for key in _GGUF_IDS]
    texts = metadata.get("tokenizer.ggml.tokens")
    types = metadata.get("tokenizer.ggml.token_type")
    if not isinstance(texts, GgufTexts | list) or not isinstance(types, list):  # the tokenizer's reader refuses them
        return TokenNames().end_tokens(named, vocab_size)

    def text_of(token_id: int) -> str | None:
        text = texts[token_id] if 0 <= token_id < len(texts) else None
        return text if isinstance(text, str) else None

    ids = [i for i, kind in enumerate(types[: len(texts)]) if kind == _CONTROL]
    return TokenNames(control={text: i for i in ids if (text := text_of(i))}, text_of=text_of).end_tokens(
        named, vocab_size
    )


def read_token_names(folder: Path) -> TokenNames:
    """What the tokenizer's files of a Hugging Face folder say. Files that are missing say nothing.

    Values of the wrong kind say nothing either: the tokenizer's reader refuses them.

    Raises:
        ModelError: a file is not JSON.
    """
    tokenizer, config, older = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
    )
    declared = _declared(config.get("added_tokens_decoder"))
    added = [*_entries(tokenizer.get("added_tokens")), *declared]
    vocabulary = _vocabulary(tokenizer.get("model"))
    ids = _Ids({text: token_id for token_id, text, _ in reversed(added)}, vocabulary)
    extra = [text for content in (config, older) for key in _EXTRA_NAMES for text in _texts(content.get(key))]
    control = {text: token_id for token_id, text, special in reversed(added) if special}
    control |= {text: token_id for text in extra if (token_id := ids.get(text)) is not None}
    named: list[Named] = []
    for file, content in (("tokenizer_config.json", config), ("special_tokens_map.json", older)):
        texts = [text for key in _FOLDER_NAMES for text in _texts([content.get(key)])]
        named.append((file, [token_id for text in texts if (token_id := ids.get(text)) is not None]))
    return TokenNames(tuple(named), control, ids.text_of)


def read_token_texts(folder: Path) -> dict[int, str]:
    """How the tokenizer of a Hugging Face folder spells each id, as far as `tokenizer.json` says it.

    Raises:
        ModelError: a file is not JSON.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path) if path.is_file() else {}
    texts = {token_id: text for text, token_id in _vocabulary(tokenizer.get("model")).items() if _is_id(token_id)}
    return texts | {token_id: text for token_id, text, _ in _entries(tokenizer.get("added_tokens"))}


class _Ids:
    """Ids by text and texts by id; added tokens stand before the vocabulary's."""

    def __init__(self, added: Mapping[str, int], vocabulary: Mapping[str, Any]) -> None:
        self._added = added
        self._vocabulary = vocabulary

    def get(self, text: str) -> int | None:
        token_id = self._added.get(text, self._vocabulary.get(text))
        return token_id if _is_id(token_id) else None

    def text_of(self, token_id: int) -> str | None:
        both = (item for entries in (self._added, self._vocabulary) for item in entries.items())
        return next((text for text, known in both if known == token_id), None)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _texts(tokens: object) -> list[str]:
    """The spellings of tokens that a file gives as strings or as objects, in a list or by name."""
    values = tokens.values() if isinstance(tokens, dict) else tokens if isinstance(tokens, list) else ()
    contents = [value.get("content") if isinstance(value, dict) else value for value in values]
    return [content for content in contents if isinstance(content, str)]


def _entries(tokens: object) -> list[tuple[int, str, bool]]:
    """Id, spelling and kind of each of a list of objects; True stands for a control token."""
    found = [token for token in tokens if isinstance(token, dict)] if isinstance(tokens, list) else []
    return [
        (token["id"], token["content"], token.get("special") is True)
        for token in found
        if _is_id(token.get("id")) and isinstance(token.get("content"), str)
    ]


def _declared(tokens: object) -> list[tuple[int, str, bool]]:
    """The same of objects by id."""
    items = tokens.items() if isinstance(tokens, dict) else ()
    return _entries([{**token, "id": int(key)} for key, token in items if isinstance(token, dict) and key.isdecimal()])


def _vocabulary(model: object) -> Mapping[str, Any]:
    """A vocabulary's ids by text, unchecked."""
    entries = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(entries, list):  # unigram: pairs of text and score, in the order of their ids
        pairs = ((i, pair) for i, pair in enumerate(entries) if isinstance(pair, list) and pair)
        return {pair[0]: i for i, pair in pairs if isinstance(pair[0], str)}
    return entries if isinstance(entries, dict) else {}
