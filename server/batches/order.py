"""The order in which the lines of a batch are run: prefix by prefix, those with most to generate first.

Lines whose prompts begin alike follow each other, so that what they share is computed once while it is in the KV cache (global
prefix sharing); and groups, and lines within one, go by what they generate for each token that they compute, the largest first, so
that decodes are there to fill steps to the end (Zheng et al. 2024, "BatchLLM", sections 4 and 5). Both are known of the whole file
before anything is run, which an online scheduler can never say.

Prefixes are compared as bytes of the JSON, without tokenizing: chunks of 256 bytes, each named by a hash of itself and all before
it. Equal bytes are equal tokens, but for the last ones.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import msgspec

CHUNK = 256  # bytes
_MOST_CHUNKS = 64  # of a prompt that are looked at
_DIGEST = 8  # bytes
_BYTES_PER_TOKEN = 4  # of text, about
_GENERATES = 256  # tokens of a line that does not say
_MOST = 2**31  # of what a line says: JSON knows no largest number


class _Prompt(msgspec.Struct):
    """Where the endpoints' bodies have their prompts, what stands first being first, and how much they ask for."""

    tools: msgspec.Raw = msgspec.Raw(b"")
    instructions: msgspec.Raw = msgspec.Raw(b"")
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptShape:
    """Of one line, as far as its order depends on it.

    Attributes:
        number: the line's.
        chunks: the names of its leading chunks, `_DIGEST` bytes each.
        size: of its prompt, in bytes.
        generates: tokens, at most.
    """

    number: int
    chunks: bytes
    size: int
    generates: int

    @property
    def ratio(self) -> float:
        """Tokens that it generates for each of its prompt."""
        return self.generates * _BYTES_PER_TOKEN / max(1, self.size)


def shape_of(body: bytes, number: int) -> PromptShape:
    """The shape of a line with this body, which is a JSON object."""
    asked = msgspec.json.decode(body, type=_Prompt)
    text = b"".join((asked.tools, asked.instructions, asked.messages, asked.prompt, asked.input))
    names, before = bytearray(), b""
    for at in range(0, min(len(text), _MOST_CHUNKS * CHUNK) - CHUNK + 1, CHUNK):
        before = blake2b(before + text[at : at + CHUNK], digest_size=_DIGEST).digest()
        names += before
    limits = (asked.max_completion_tokens, asked.max_output_tokens, asked.max_tokens)
    generates = next((_bounded(limit) for limit in limits if type(limit) is int), _GENERATES)
    return PromptShape(
        number=number, chunks=bytes(names), size=len(text), generates=generates * max(1, _choices(asked))
    )


def sequences_of(body: bytes) -> int:
    """How many sequences a body asks for, which is a JSON object: as far as it can be told without the model."""
    asked = msgspec.json.decode(body, type=_Prompt)
    inputs = max(1, _inputs(asked.prompt), _inputs(asked.input))
    return inputs * max(1, _choices(asked))


def _choices(asked: _Prompt) -> int:
    return max((_bounded(count) for count in (asked.n, asked.best_of) if type(count) is int), default=1)


def _inputs(given: msgspec.Raw) -> int:
    """Texts, or lists of ids, of a list; one of anything else."""
    if not bytes(given).startswith(b"["):
        return 1
    parts = msgspec.json.decode(given, type=list[msgspec.Raw])
    return sum(bytes(part)[:1] in (b'"', b"[") for part in parts)


def _bounded(number: int) -> int:
    return min(max(0, number), _MOST)


def run_order(shapes: Iterable[PromptShape]) -> list[int]:
    """The numbers of the lines in the order in which they are run."""
    groups: dict[bytes | int, list[PromptShape]] = defaultdict(list)
    for shape in shapes:
        groups[shape.chunks[:_DIGEST] or -shape.number].append(shape)
    for group in groups.values():
        group.sort(key=lambda shape: (shape.chunks, -shape.ratio, shape.number))
    ordered = sorted(groups.values(), key=lambda group: (-_ratio(group), group[0].number))
    return [shape.number for group in ordered for shape in group]


def _ratio(group: list[PromptShape]) -> float:
    """Tokens that the group generates for each that it computes, shared ones counted once."""
    shared = {shape.chunks[at : at + _DIGEST] for shape in group for at in range(0, len(shape.chunks), _DIGEST)}
    own = sum(shape.size - len(shape.chunks) // _DIGEST * CHUNK for shape in group)
    return sum(shape.generates for shape in group) * _BYTES_PER_TOKEN / max(1, own + len(shared) * CHUNK)
