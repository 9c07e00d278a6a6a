"""Long prompts mostly go on with what was encoded before: of a session's next prompt only the end is new.

A text may be cut behind a special token, and nowhere else: tokenizers split it there before all else, so what stands behind it is
encoded as if nothing stood before. What was encoded up to such a cut is found by a hash of the text up to there.
"""

import hashlib
import re
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from tokenizers import AddedToken

LEAST_CHARACTERS = 8 * 1024  # of a text: shorter ones take a few milliseconds
APART = 1024  # characters between two cuts, at least
ROOM_BYTES = 64 * 2**20
_KEY_BYTES = 16
_BYTES_OF_KEY = 200  # with its places in the books
_WORD_END = re.compile(r"\w$")
_SAMPLES = (" a b\n", "A\u00e9 1", "\n\n", "")

EncodeAll = Callable[[Sequence[str]], list[list[int]]]


class _Session:
    """What the text of one prompt was encoded to, up to its last cut."""

    def __init__(self, ids: list[int], keys: list[bytes]) -> None:
        self.ids = array("I", ids)
        self.keys = set(keys)
        self.size = self.ids.itemsize * len(ids) + _BYTES_OF_KEY * len(keys)


class KnownPrefixes:
    """Encodes texts, and remembers what it encoded: of those that were used least recently as little as there is room for.

    Calls may come from any thread.

    Args:
        encode: the ids of each of some texts, without special tokens around it.
        marks: behind which a text may be cut (`cutting_tokens`).
        room: bytes for all that is remembered.
    """

    def __init__(self, encode: EncodeAll, marks: Iterable[str], room: int = ROOM_BYTES) -> None:
        self._encode = encode
        longest_first = sorted(marks, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest_first))) if longest_first else None
        self._room = room
        self._lock = threading.Lock()
        self._sessions: dict[_Session, None] = {}  # the least recently used first
        self._places: dict[bytes, tuple[_Session, int]] = {}  # by the text up to a cut: how many of a session's ids
        self.held = 0

    def encode(self, text: str, salt: str) -> list[int]:
        """The ids of a text. Only texts of equal salt tell, by the time that it takes, that they were encoded before."""
        cuts = self._cuts(text) if len(text) >= LEAST_CHARACTERS else []
        if not cuts:
            return self._encode([text])[0]
        keys = list(_keys(text, cuts, salt))
        known, ids = self._known(keys)
        begin = cuts[known - 1] if known else 0
        parts = self._encode([text[start:end] for start, end in pairwise([begin, *cuts[known:], len(text)])])
        counts = []
        for part in parts:
            ids += part
            counts.append(len(ids))
        if known < len(cuts):
            self._keep(keys, known, counts[:-1], ids)
        return ids

    def _cuts(self, text: str) -> list[int]:
        cuts = [0]
        if self._marks is not None:
            for found in self._marks.finditer(text):
                if found.end() - cuts[-1] >= APART:
                    cuts.append(found.end())
        return cuts[1:]

    def _known(self, keys: Sequence[bytes]) -> tuple[int, list[int]]:
        """Up to how many of the cuts the text is known, and the ids up to there."""
        with self._lock:
            for index in range(len(keys), 0, -1):
                place = self._places.get(keys[index - 1])
                if place is not None:
                    session, count = place
                    self._sessions.pop(session)
                    self._sessions[session] = None
                    return index, session.ids[:count].tolist()
        return 0, []

    def _keep(self, keys: list[bytes], known: int, counts: Sequence[int], ids: list[int]) -> None:
        """Remember a text of which so many cuts were known, and further ones have these counts of ids.

        The session with which it goes on is forgotten, but for what of it is not in this one.
        """
        session = _Session(ids[: counts[-1]], keys)
        with self._lock:
            before = [self._places[key][1] if key in self._places else None for key in keys[:known]]
            if session.size > self._room or None in before:  # what it goes on with has been forgotten meanwhile
                return
            self._sessions[session] = None
            self.held += session.size
            for key, count in zip(keys, [*before, *counts], strict=True):
                if count is not None:
                    self._move(key, session, count)
            while self.held > self._room:
                self._forget(next(iter(self._sessions)))

    def _move(self, key: bytes, session: _Session, count: int) -> None:
        place = self._places.get(key)
        self._places[key] = session, count
        if place is not None and place[0] is not session:
            place[0].keys.discard(key)
            if not place[0].keys:
                self._forget(place[0])

    def _forget(self, session: _Session) -> None:
        del self._sessions[session]
        self.held -= session.size
        for key in session.keys:
            del self._places[key]


def _keys(text: str, cuts: Sequence[int], salt: str) -> Iterator[bytes]:
    """Of the text up to each cut."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES, key=hashlib.blake2b(salt.encode(), digest_size=32).digest())
    for start, end in pairwise([0, *cuts]):
        digest.update(text[start:end].encode("utf-8", "surrogatepass"))
        yield digest.digest()


def cutting_tokens(added: Mapping[int, AddedToken], encode: EncodeAll) -> list[str]:
    """Behind which of a tokenizer's added tokens a text may be cut: special ones that are found as they are spelled, of which no
    part may belong to another one. Whether this tokenizer does encode what stands behind them by itself is tried."""
    spelled = {token.content for token in added.values() if token.content}
    whole_words = any(
        token.single_word for token in added.values()
    )  # these see the last character of the mark before them
    safe = [
        token.content
        for token in added.values()
        if token.content
        and token.special
        and not (token.normalized or token.lstrip or token.rstrip or token.single_word)
    ]
    found = []
    for mark in safe:
        others = spelled - {mark}
        if whole_words and _WORD_END.search(mark):
            continue
        if not any(_overlap(mark, other) for other in others) and _cuts(mark, encode):
            found.append(mark)
    return found


def _overlap(one: str, other: str) -> bool:
    if one in other or other in one:
        return True
    return any(one.endswith(other[:size]) or other.endswith(one[:size]) for size in range(1, min(len(one), len(other))))


def _cuts(mark: str, encode: EncodeAll) -> bool:
    texts = [before + mark + behind for before in _SAMPLES for behind in _SAMPLES]
    parts = [part for before in _SAMPLES for behind in _SAMPLES for part in (before + mark, behind)]
    whole, apart = encode(texts), iter(encode(parts))
    return all(ids == next(apart) + next(apart) for ids in whole)
