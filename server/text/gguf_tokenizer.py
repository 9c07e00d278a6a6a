"""A tokenizer from the metadata of a GGUF file (`tokenizer.ggml.*`): byte-level BPE (`gpt2`) and SentencePiece (`llama`).

A GGUF file only names the way in which text is split into words (`tokenizer.ggml.pre`). Each name here stands for the
pre-tokenizer of that model family's published `tokenizer.json`, and gives the same ids. An unknown name is refused: a wrong
split gives ids on which the model was not trained, and answers that are silently worse.
"""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from configs.model.gguf_file import GgufTexts
from server.text.tokenizer import Tokenizer, TokenizerError, surround

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_LLAMA3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


class _TokenType(IntEnum):
    """Values of `tokenizer.ggml.token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class _Split:
    """How one family of byte-level vocabularies splits text before merging."""

    make: Callable[[], pre_tokenizers.PreTokenizer]
    adds_bos: bool = False  # if the file does not say
    ignore_merges: bool = False  # a word that is itself an entry is taken whole
    nfc: bool = False


def _regexes(*patterns: str) -> Callable[[], pre_tokenizers.PreTokenizer]:
    """Split by each pattern in turn, then spell bytes."""

    def make() -> pre_tokenizers.PreTokenizer:
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in patterns]
        return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])

    return make


def _gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _digits_then_gpt2() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


_SPLITS = {
    "default": _Split(_gpt2),
    "gpt-2": _Split(_gpt2),
    "smollm": _Split(_digits_then_gpt2),
    "starcoder": _Split(_digits_then_gpt2),
    "refact": _Split(_digits_then_gpt2),
    "command-r": _Split(_digits_then_gpt2),
    "llama3": _Split(_regexes(_LLAMA3), adds_bos=True, ignore_merges=True),
    "llama-v3": _Split(_regexes(_LLAMA3), adds_bos=True, ignore_merges=True),
    "llama-bpe": _Split(_regexes(_LLAMA3), adds_bos=True, ignore_merges=True),
    "tekken": _Split(_regexes(_TEKKEN), adds_bos=True, ignore_merges=True),
    "qwen2": _Split(_regexes(_QWEN2), nfc=True),
    "deepseek-r1-qwen": _Split(_regexes(_QWEN2)),
    "deepseek-v3": _Split(_regexes(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK3)),
    "deepseek-coder": _Split(_regexes(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u0800-一가-\ud7ff]+", r"\p{N}")),
}


# Tokens for filling in the middle (`server/text/fill_in_middle.py`), by llama.cpp's names and by its older ones.
_FILL_KEYS = (
    *("fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep"),
    *("prefix", "suffix", "middle", "eot"),
)

# What each key of `tokenizer.ggml` holds: a type, or a list of one. A file may say anything.
_KINDS: Mapping[str, type | list[type]] = {
    "tokens": [str],
    "token_type": [int],
    "scores": [float],
    "merges": [str],
    **dict.fromkeys(("model", "pre"), str),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"), int),
    **dict.fromkeys([f"{key}_token_id" for key in _FILL_KEYS], int),
    **dict.fromkeys(("add_bos_token", "add_eos_token", "add_space_prefix"), bool),
}


def _is(value: object, kind: type | list[type]) -> bool:
    if isinstance(value, GgufTexts):
        return kind == [str]
    if isinstance(kind, list):
        return isinstance(value, list | tuple) and set(map(type, value)) <= set(kind)
    return type(value) is kind


class _Vocabulary:
    """The metadata keys that make a vocabulary, checked for presence and shape."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.tokens: Sequence[str] = list(self._required("tokens"))
        self.types: Sequence[int] = self.optional("token_type", ()) or [_TokenType.NORMAL] * len(self.tokens)
        if len(self.types) != len(self.tokens):
            raise TokenizerError(f"the GGUF file has {len(self.tokens)} tokens but {len(self.types)} token types")
        self.ids = dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    def _required(self, key: str) -> Any:
        value = self.optional(key)
        if value is None:
            raise TokenizerError(f"the GGUF file has no tokenizer.ggml.{key}; convert the model again")
        return value

    def optional(self, key: str, default: Any = None) -> Any:
        """The value of `tokenizer.ggml.<key>`, or `default`."""
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        kind = _KINDS.get(key)
        if value is not None and kind is not None and not _is(value, kind):
            wanted = f"a list of {kind[0].__name__}" if isinstance(kind, list) else f"of type {kind.__name__}"
            raise TokenizerError(f"the GGUF file's tokenizer.ggml.{key} is {reprlib.repr(value)}, not {wanted}")
        return default if value is None else value

    def of_type(self, *types: int) -> Iterator[str]:
        """Tokens of these types, by id."""
        return (token for token, kind in zip(self.tokens, self.types, strict=True) if kind in types)

    def named(self, key: str) -> str | None:
        """The token whose id is stored under this key; None if there is none."""
        token_id = self.optional(key)
        if token_id is None and self.optional("model") == "llama":
            token_id = self._usual(key)
        return self.tokens[token_id] if token_id is not None and 0 <= token_id < len(self.tokens) else None

    def _usual(self, key: str) -> int | None:
        """What llama.cpp takes where a SentencePiece file does not say which control tokens begin and end a text."""
        token_id = {"bos_token_id": 1, "eos_token_id": 2}.get(key, len(self.types))
        return token_id if list(self.types[token_id : token_id + 1]) == [_TokenType.CONTROL] else None

    def listed_merges(self) -> list[tuple[str, str]] | None:
        """The file's merges, best first. Their parts may begin with a space, so the first character is never the separator."""
        merges = self.optional("merges")
        if merges is None:
            return None
        pairs = []
        for merge in merges:
            cut = merge.find(" ", 1)
            pairs.append((merge[:cut], merge[cut + 1 :]))
        return pairs

    def implied_merges(self) -> list[tuple[str, str]]:
        """The merges that rebuild a SentencePiece BPE vocabulary: every split of an entry into two entries, best score first.

        With equal scores the longer left part comes first, then the longer right part, then lower ids (transformers' order).
        llama.cpp takes the leftmost pair then, which no list of merges can say; published vocabularies have no equal scores.
        """
        scores: Sequence[float] = self._required("scores")
        found = []
        for token, score, kind in zip(self.tokens, scores, self.types, strict=True):
            if kind in (_TokenType.CONTROL, _TokenType.BYTE, _TokenType.UNKNOWN):
                continue  # never produced from text
            for cut in range(1, len(token)):
                left, right = token[:cut], token[cut:]
                if left in self.ids and right in self.ids:
                    found.append((-score, -len(left), -len(right), self.ids[left], self.ids[right], left, right))
        found.sort(key=lambda merge: merge[:5])
        return [merge[5:] for merge in found]


def from_gguf_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a GGUF file describes.

    SentencePiece text is handled as by llama.cpp, and as the tokenizer.json of Llama 2 has it: a space is put before each stretch
    of text between control and user-defined tokens, unless the file says that there is no such space.

    Args:
        metadata: the file's key-value pairs; arrays as sequences.

    Raises:
        TokenizerError: a key is missing, or the model or pre-tokenizer is unknown; the message lists the known ones.
    """
    kind = metadata.get("tokenizer.ggml.model")
    build = {"gpt2": _byte_level, "llama": _sentencepiece}.get(str(kind))
    if build is None:
        raise TokenizerError(
            f"tokenizer model {reprlib.repr(kind)} of the GGUF file is not known; known are gpt2, llama"
        )
    vocabulary = _Vocabulary(metadata)
    try:
        backend, adds_bos = build(vocabulary)
    except TokenizerError:
        raise
    except Exception as error:  # tokenizers raises bare Exception, for example for a merge of unknown parts
        raise TokenizerError(f"the GGUF file's vocabulary is broken: {error}") from error
    _add_tokens(backend, vocabulary)
    keys = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    keys |= {f"{key}_token": key for key in _FILL_KEYS}
    special = {name: vocabulary.named(f"{key}_token_id") for name, key in keys.items()}
    adds_bos = vocabulary.optional("add_bos_token", adds_bos)
    adds_eos = vocabulary.optional("add_eos_token", False)
    surround(backend, special["bos_token"] if adds_bos else None, special["eos_token"] if adds_eos else None)
    named = {name: token for name, token in special.items() if token is not None}
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise TokenizerError(f"the GGUF file's tokenizer.chat_template is {reprlib.repr(template)}, not of type str")
    return Tokenizer(backend, named, template, vocabulary.ids)


def _byte_level(vocabulary: _Vocabulary) -> tuple[Backend, bool]:
    """A byte-level BPE backend, and whether its family adds BOS."""
    name = vocabulary.optional("pre")
    split = _SPLITS.get(str(name))
    if split is None:
        said = "names no pre-tokenizer" if name is None else f"names the unknown pre-tokenizer {name!r}"
        raise TokenizerError(f"the GGUF file {said}; known are {', '.join(_SPLITS)}")
    merges = vocabulary.listed_merges()
    if merges is None:
        raise TokenizerError("the GGUF file has no tokenizer.ggml.merges; convert the model again")
    backend = Backend(models.BPE(vocab=vocabulary.ids, merges=merges, ignore_merges=split.ignore_merges))
    if split.nfc:
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = split.make()
    backend.decoder = decoders.ByteLevel()
    return backend, split.adds_bos


def _sentencepiece(vocabulary: _Vocabulary) -> tuple[Backend, bool]:
    """A SentencePiece BPE backend with byte fallback. Such models add BOS unless the file says otherwise."""
    merges = vocabulary.listed_merges() or vocabulary.implied_merges()
    unknown = vocabulary.named("unknown_token_id") or next(vocabulary.of_type(_TokenType.UNKNOWN), None)
    model = models.BPE(vocab=vocabulary.ids, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    backend = Backend(model)
    prefix = vocabulary.optional("add_space_prefix", True)
    # Of each stretch of text. Metaspace, which does the same in newer files, spares a stretch that begins with a space.
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", "\u2581")]
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), *spaces] if prefix else spaces)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend, True


def _add_tokens(backend: Backend, vocabulary: _Vocabulary) -> None:
    """Match control tokens (special) and user-defined ones (plain text) whole, wherever they occur."""
    special = list(vocabulary.of_type(_TokenType.CONTROL))
    if vocabulary.optional("model") == "llama":
        special += vocabulary.of_type(_TokenType.UNKNOWN)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    plain = vocabulary.of_type(_TokenType.USER_DEFINED)
    backend.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
