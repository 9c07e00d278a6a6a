"""Answers of late, in which the newest tokens of another are looked for: requests of one kind have answers alike.

As a suffix tree over recent outputs does (Oliaro et al. 2024, "SuffixDecoding"), but a few passes over an array of bounded length:
an index would take more than a look saves. Answers are kept apart as prefixes are, by tenant, cache salt and adapter: how fast one
comes must not show what another was.
"""

from collections import OrderedDict
from collections.abc import Hashable

import numpy as np

from engine.drafting.history import Tokens, longest_match
from scheduler.worth import LONGEST_MATCH

_SCOPES = 32  # the last ones that were used are kept
_KEPT = 16_384  # tokens of each, and at most as many again before the oldest go
_END = -1  # between answers: no token


class RecentAnswers:
    """Of one engine: at most 4 MiB."""

    def __init__(self) -> None:
        self._scopes: OrderedDict[Hashable, Tokens] = OrderedDict()

    def add(self, scope: Hashable, answer: Tokens) -> None:
        """An answer has ended."""
        kept = self._scopes.pop(scope, np.empty(0, dtype=np.int32))
        if len(kept) > _KEPT:
            kept = kept[-_KEPT:]
        self._scopes[scope] = np.concatenate([kept, answer[-_KEPT:], np.array([_END], dtype=np.int32)])
        if len(self._scopes) > _SCOPES:
            self._scopes.popitem(last=False)

    def look(self, scope: Hashable, newest: Tokens, most: int) -> tuple[int, list[int]]:
        """How many of the newest tokens were found in a row in an answer, and at most that many tokens that followed there."""
        kept = self._scopes.get(scope)
        if kept is None:
            return 0, []
        self._scopes.move_to_end(scope)
        length, places = longest_match(kept, newest[-LONGEST_MATCH:])
        if not length:
            return 0, []
        following = kept[int(places[-1]) + 1 :][:most]
        ends = np.flatnonzero(following == _END)
        return length, (following[: ends[0]] if len(ends) else following).tolist()
