"""Texts and pairs of texts cut down to a number of tokens, with what the tokenizer puts around and between them left whole."""

from dataclasses import dataclass

from tokenizers import Encoding


@dataclass(frozen=True, slots=True)
class ModelInput:
    """What a model gets.

    Attributes:
        ids: special tokens included.
        pair_start: index of the first token of the second type; 0: all are of the first.
    """

    ids: list[int]
    pair_start: int = 0


def whole(encoding: Encoding) -> ModelInput:
    """All of it."""
    return _of(encoding.ids, encoding.type_ids)


def cut(encoding: Encoding, most: int, *, keep_end: bool = False) -> ModelInput:
    """At most `most` tokens of it, which must be more than the special ones.

    Of a pair the longer text is cut first, until both are equal, as Hugging Face's `longest_first` does.

    Args:
        encoding: of a text or of a pair.
        most: tokens, special ones included.
        keep_end: whether the beginning is cut off instead of the end.
    """
    texts = [_places(encoding, text) for text in (0, 1)]
    specials = len(encoding.ids) - sum(map(len, texts))
    keep = _shares(len(texts[0]), len(texts[1]), room=max(0, most - specials))
    dropped = {
        place
        for places, count in zip(texts, keep, strict=True)
        for place in (places[: len(places) - count] if keep_end else places[count:])
    }
    kept = [place for place in range(len(encoding.ids)) if place not in dropped]
    return _of([encoding.ids[place] for place in kept], [encoding.type_ids[place] for place in kept])


def special_tokens(encoding: Encoding) -> int:
    """How many of its tokens belong to no text."""
    return sum(text is None for text in encoding.sequence_ids)


def _places(encoding: Encoding, text: int) -> list[int]:
    return [place for place, of in enumerate(encoding.sequence_ids) if of == text]


def _shares(first: int, second: int, room: int) -> tuple[int, int]:
    """How many tokens of each text stay."""
    if first + second <= room:
        return first, second
    shorter = min(first, second, room // 2)
    return (shorter, room - shorter) if first <= second else (room - shorter, shorter)


def _of(ids: list[int], types: list[int]) -> ModelInput:
    return ModelInput(ids, types.index(1) if 1 in types else 0)
