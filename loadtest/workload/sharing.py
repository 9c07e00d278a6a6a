"""What a plan's requests have in common: how much of its prompt a request can find in a cache that only this run has filled."""

from bisect import bisect_left, insort
from collections.abc import Iterable
from os.path import commonprefix

from loadtest.workload.plan import Planned


class Shared:
    """Takes requests in order, and says of each how many tokens of its prompt earlier ones had.

    Args:
        base: tokens with which every prompt begins (the opener, a chat template).
    """

    def __init__(self, base: int) -> None:
        self._base = base
        self._any = False
        self._sessions: dict[str, int] = {}
        self._chains: set[int] = set()  # hashes of prompts' leading blocks
        self._texts: list[str] = []  # sorted

    def tokens(self, request: Planned, length: int) -> int:
        """Tokens of the request's prompt, which has `length`, that an earlier one began with: as many at the most."""
        common = self._base if self._any else 0
        self._any = True
        if request.prompt is not None:
            found = round(length * self._of_text(request.prompt))
        elif request.blocks:
            found = self._of_blocks(request.blocks) * request.block_tokens
        elif request.session is not None:
            found = min(length, self._sessions.get(request.session, 0))
            self._sessions[request.session] = max(length, self._sessions.get(request.session, 0))
        else:
            found = 0
        return min(length, max(found, common))

    def _of_text(self, text: str) -> float:
        """The share of the text that an earlier one began with: its neighbours in order have most in common with it."""
        place = bisect_left(self._texts, text)
        near = self._texts[max(0, place - 1) : place + 1]
        insort(self._texts, text)
        common = (len(commonprefix((text, other))) for other in near)  # noqa: RUF071  characters are meant
        return max(common, default=0) / max(1, len(text))

    def _of_blocks(self, blocks: Iterable[int]) -> int:
        """How many of the leading blocks were those of an earlier prompt."""
        found, chain, known = 0, 0, True
        for block in blocks:
            chain = hash((chain, block))
            known = known and chain in self._chains
            found += known
            self._chains.add(chain)
        return found
