"""Tokens from text and text from tokens: a thin layer over `tokenizers.Tokenizer` that knows the bytes of every token.

Text is always decoded from bytes: the bytes of the tokens are joined and read as UTF-8; whatever is not UTF-8 becomes U+FFFD.
For byte-level BPE, Hugging Face's decoder does the same. For SentencePiece vocabularies the result is the same for valid UTF-8;
in a broken run of byte tokens, Hugging Face replaces every byte with U+FFFD, but here only the broken bytes are replaced, because
otherwise no character of a run could be streamed before the run ends.
"""

import json
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from tokenizers import AddedToken, Encoding, processors
from tokenizers import Tokenizer as Backend

from server.text.prefixes.known_prefixes import LEAST_CHARACTERS, KnownPrefixes, cutting_tokens
from server.text.respelling import respelled

# Texts are encoded one at a time, so a thread pool would gain nothing, and the library warns on stderr when a process that has
# used its pool forks.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_UTF8_BYTES = 4  # of one character, at most
_quoted = msgspec.json.Encoder().encode


class TokenizerError(ValueError):
    """The tokenizer cannot be loaded; the message says what was found, what is supported and how to fix it."""


def byte_alphabet() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (Radford et al. 2019, GPT-2).

    Printable Latin-1 bytes stand for themselves; the other 68 are mapped to U+0100 onwards, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {byte: chr(byte) for byte in printable} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}


class _ByteLevelPieces:
    """Vocabulary entries spelled in the byte alphabet."""

    strips_first_space = False
    _bytes: ClassVar[dict[str, int]] = {char: byte for byte, char in byte_alphabet().items()}

    def encode(self, piece: str, added: bool) -> bytes:
        """The bytes of an entry. Added tokens, and entries with a character outside the alphabet, are plain text."""
        if added or any(char not in self._bytes for char in piece):
            return piece.encode()
        return bytes(self._bytes[char] for char in piece)


class _SentencePieces:
    """Vocabulary entries that write a space as U+2581 and a byte as `<0x0A>` (Kudo and Richardson 2018)."""

    def __init__(self, strips_first_space: bool, byte_fallback: bool) -> None:
        self.strips_first_space = strips_first_space
        self._byte_tokens = {f"<0x{byte:02X}>": bytes((byte,)) for byte in range(256)} if byte_fallback else {}

    def encode(self, piece: str, added: bool) -> bytes:
        """The bytes of an entry."""
        del added  # Hugging Face's decoder treats added tokens like all others
        return self._byte_tokens.get(piece) or piece.replace("\u2581", " ").encode()


class _WordPieces:
    """Vocabulary entries that are words, or go on with one (`##ing`): Wu et al. 2016, arXiv 1609.08144, section 4.1, as in BERT.

    What the tokenizer normalized away (case, accents, spaces) is lost; Hugging Face's decoder also closes up some punctuation.
    """

    strips_first_space = True

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix

    def encode(self, piece: str, added: bool) -> bytes:
        """The bytes of an entry: a word has a space before it."""
        goes_on = piece.startswith(self._prefix) and not added
        return (piece.removeprefix(self._prefix) if goes_on else f" {piece}").encode()


def _pieces_of(decoder: Mapping[str, Any] | None) -> _ByteLevelPieces | _SentencePieces | _WordPieces:
    """How a tokenizer.json's `decoder` spells bytes. Raises TokenizerError for a decoder that is not byte-based."""
    steps: list[Mapping[str, Any]] = []
    if decoder is not None:
        steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return _ByteLevelPieces()
    if kinds == ["WordPiece"]:
        return _WordPieces(steps[0].get("prefix", "##"))
    if "Metaspace" in kinds and set(kinds) <= {"Metaspace", "ByteFallback", "Fuse"} and "Fuse" not in kinds[:-1]:
        strips = steps[kinds.index("Metaspace")].get("prepend_scheme") != "never"
        return _SentencePieces(strips, "ByteFallback" in kinds)
    if kinds and set(kinds) <= {"Replace", "ByteFallback", "Fuse", "Strip"} and "Replace" in kinds:
        strips = any(step["type"] == "Strip" and step["start"] > 0 for step in steps)
        return _SentencePieces(strips, "ByteFallback" in kinds)
    raise TokenizerError(
        f"tokenizer decoder {' + '.join(kinds) or 'none'} is not known; known are ByteLevel, WordPiece, Metaspace + ByteFallback + "
        "Fuse and Replace + ByteFallback + Fuse + Strip"
    )


class QuotedTexts(dict[int, bytes | None]):
    """By token, the JSON of its text: empty if it has none; None if it does not consist of whole characters, so that it has to be
    put together with its neighbours. Filled as it is asked; a token that was seen before costs no call.

    Args:
        token_bytes: gives the bytes of a token.
    """

    def __init__(self, token_bytes: Callable[[int], bytes]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> bytes | None:
        try:
            text = self._token_bytes(token_id).decode()
        except UnicodeDecodeError:
            quoted = None
        else:
            quoted = _quoted(text) if text else b""
        self[token_id] = quoted
        return quoted


class Tokenizer:
    """One model's tokenizer. Immutable once made; `encode` and `decode` may be called from any thread.

    Special tokens written inside a text are encoded as special tokens, as Hugging Face and vLLM do: a user who writes
    `<|im_end|>` ends the turn, unless the prompt is encoded as in `server/text/content_as_text.py`.

    `longest_token` is the length of the longest token in bytes: a text of more than `n` times as many bytes has more than `n`
    tokens, unless a normalizer shortens it or an added token swallows spaces; only texts made for that purpose do so.

    Args:
        backend: the tokenizer with its post-processor; truncation and padding are off.
        special_tokens: names that chat templates may use (`bos_token`, `eos_token`, ...), with their text.
        chat_template: the model's own Jinja source, if it has one.
        vocabulary: the ids of all entries by their spelling; asked of `backend`, which takes a while, unless given.

    Attributes:
        quoted_texts: what each token adds to a text, as JSON.

    Raises:
        TokenizerError: the backend's decoder is neither byte-level nor WordPiece nor SentencePiece.
    """

    def __init__(
        self,
        backend: Backend,
        special_tokens: Mapping[str, str],
        chat_template: str | None = None,
        vocabulary: Mapping[str, int] | None = None,
    ) -> None:
        self._backend = backend
        self._pieces = _pieces_of(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
        added = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added.items()}
        self._special = frozenset(token_id for token_id, token in added.items() if token.special)
        self._token_bytes: dict[int, bytes] = {}  # filled on demand: a stream touches few of 150,000
        self.quoted_texts = QuotedTexts(self.token_bytes)
        self.longest_token = self._longest(vocabulary or backend.get_vocab(with_added_tokens=True))
        self.special_tokens = dict(special_tokens)
        self.model_chat_template = chat_template

    def _longest(self, vocabulary: Mapping[str, int]) -> int:
        def length(piece: str) -> int:
            return len(self._pieces.encode(piece, vocabulary[piece] in self._added))

        least = length(max(vocabulary, key=len, default="")) if vocabulary else 1
        return max([1, least, *(length(piece) for piece in vocabulary if _UTF8_BYTES * len(piece) > least)])

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `decode` leaves out by default."""
        return self._special

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """By id, the tokens that are found in a text as they are spelled, before it is split: all special ones, and others."""
        return self._added

    def id_of(self, token: str) -> int | None:
        """The id of the vocabulary's entry of this spelling, which is not the same as its text; None if there is none."""
        return self._backend.token_to_id(token) if token else None

    def renamed(self, names: Mapping[str, str]) -> "Tokenizer":
        """The same tokenizer with other spellings of these entries. Takes up to some seconds."""
        description = respelled(json.loads(self._backend.to_str()), names)
        special = {role: names.get(token, token) for role, token in self.special_tokens.items()}
        return Tokenizer(Backend.from_str(json.dumps(description)), special)

    @property
    def strips_first_space(self) -> bool:
        """Whether decoding a text of its own drops the space that encoding put before its first word."""
        return self._pieces.strips_first_space

    def encode(self, text: str, add_special_tokens: bool = True, *, salt: str | None = None) -> list[int]:
        """The token ids of `text`. `add_special_tokens` adds what the model wants around a plain text, such as BOS.

        With a `salt` it is remembered, if it is long and nothing is added: of the next text of the same salt that begins alike only
        the rest is encoded (`server/text/prefixes/`).

        A rendered chat template already contains its BOS: encode it with `add_special_tokens=False`. The interpreter lock is
        released meanwhile, so a thread can keep long texts (a million tokens take 1-3 s) off an event loop.
        """
        if salt is not None and not add_special_tokens and len(text) >= LEAST_CHARACTERS:
            return self._prefixes.encode(text, salt)
        # The library's `encode` would hold the lock, and compute offsets that nobody needs.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    @cached_property
    def _prefixes(self) -> KnownPrefixes:
        added = self._backend.get_added_tokens_decoder()
        return KnownPrefixes(self._encode_all, cutting_tokens(added, self._encode_all))

    def _encode_all(self, texts: Sequence[str]) -> list[list[int]]:
        return [each.ids for each in self._backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def inputs(self, texts: Iterable[str | tuple[str, str]], add_special_tokens: bool = True) -> list[Encoding]:
        """Texts, or pairs of texts, as an encoder wants them: with their special tokens and types. The lock is released."""
        return self._backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that this token adds to a text; for a special token its spelling; empty for an id without an entry."""
        known = self._token_bytes.get(token_id)
        if known is None:
            piece = self._backend.id_to_token(token_id) if token_id >= 0 else None
            known = self._pieces.encode(piece, token_id in self._added) if piece is not None else b""
            self._token_bytes[token_id] = known
        return known

    def token_text(self, token_id: int) -> str:
        r"""The token's own text for a log-probability entry.

        A token that holds only part of a character has no text: it is named by its bytes, as OpenAI does
        (`bytes:\xf0\x9f`), so that no two tokens in one `top_logprobs` share a name.
        """
        raw = self.token_bytes(token_id)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True, *, continues: bool = False) -> str:
        """The text of `ids`; ids outside the vocabulary add nothing.

        Args:
            ids: token ids.
            skip_special_tokens: leave out special tokens.
            continues: the text continues an earlier one, so a SentencePiece vocabulary's first space is kept.
        """
        skipped = self._special if skip_special_tokens else frozenset()
        raw = b"".join(self.token_bytes(token_id) for token_id in ids if token_id not in skipped)
        text = raw.decode("utf-8", "replace")
        return text[1:] if self.strips_first_space and not continues and text.startswith(" ") else text


def load_folder(folder: Path) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, with the folder's special tokens and chat template.

    What is put around a text is what `tokenizer.json` puts there. As in transformers 5, `add_bos_token` and `add_eos_token` of
    `tokenizer_config.json` say nothing beside it: they are left over from the tokenizer it was converted from.

    Raises:
        TokenizerError: `tokenizer.json` is missing or unreadable, or its kind is not known.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json; write one with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    try:
        backend = Backend.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise TokenizerError(f"{path} cannot be read: {error}") from error
    config = _read_json(folder / "tokenizer_config.json")
    older = _read_json(folder / "special_tokens_map.json")
    if "added_tokens_decoder" not in config:  # as in transformers: else the older file is not read, and here it decides
        config |= older
    special = _named_tokens(config)
    try:
        _add_missing(backend, config, special.values())
        template = _folder_template(folder, config)
    except (AttributeError, KeyError, TypeError, ValueError, OSError) as error:  # any key may hold anything
        raise TokenizerError(
            f"{folder / 'tokenizer_config.json'} is damaged: {type(error).__name__}: {reprlib.repr(str(error))}"
        ) from error
    backend.no_truncation()
    backend.no_padding()
    return Tokenizer(backend, special, template)


def surround(backend: Backend, bos: str | None, eos: str | None) -> None:
    """Make `backend` put these special tokens around a text that is encoded with `add_special_tokens`."""
    single = ([bos] if bos else []) + ["$A"] + ([eos] if eos else [])
    tokens = [(token, backend.token_to_id(token)) for token in dict.fromkeys((bos, eos)) if token]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=tokens)


def _read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty if the file does not exist."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is not a JSON object")
    return content


def _content(token: object) -> str | None:
    """The text of a token that a config names as a string or as an object."""
    if isinstance(token, Mapping):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _named_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """The text of every token that the config gives a name: `bos_token` and its like, and names of the model's own."""
    extra = config.get("extra_special_tokens")
    tokens = {name: token for name, token in config.items() if name.endswith("_token")}
    found = {name: _content(token) for name, token in (tokens | (extra if isinstance(extra, dict) else {})).items()}
    return {name: text for name, text in found.items() if text is not None}


def _add_missing(backend: Backend, config: Mapping[str, Any], special: Iterable[str]) -> None:
    """Add what `tokenizer_config.json` declares beyond `tokenizer.json` or otherwise, as transformers does when it loads both."""
    declared = config.get("added_tokens_decoder") or {}
    stored = {token.content: token for token in backend.get_added_tokens_decoder().values()}
    known = {text: token.special for text, token in stored.items()}
    added = []
    for _, token in sorted(declared.items(), key=lambda item: int(item[0])):
        text, special_here = token["content"], bool(token.get("special", False))
        flags = {name: bool(token[name]) for name in ("single_word", "lstrip", "rstrip", "normalized") if name in token}
        known[text] = special_here or known.get(text, False)  # once special, always special
        added.append(AddedToken(text, special=known[text], **{"normalized": not special_here, **flags}))
    # All in one call, as each call builds the search anew.
    backend.add_tokens([token for token in added if repr(token) != repr(stored.get(token.content))])
    lists = [config.get(key) or () for key in ("additional_special_tokens", "extra_special_tokens")]
    extra = [_content(token) for tokens in lists if not isinstance(tokens, dict) for token in tokens]
    # Of tokens that are added already, those with a role are special, and those that are only listed stay what they are.
    listed = [text for text in extra if text is not None and text not in known]
    for text in dict.fromkeys((*special, *listed)):
        if not known.get(text, False) and backend.token_to_id(text) is not None:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])


def _folder_template(folder: Path, config: Mapping[str, Any]) -> str | None:
    """The chat template: its own file, or the config's text, or the `default` one of the config's list."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default") or (next(iter(named.values())) if len(named) == 1 else None)
    return template if isinstance(template, str) else None
