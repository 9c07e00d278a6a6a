"""How fast an engine serves tokens, measured, and what that says of the sequences that are open.

A prompt's tokens count when its sequence's first token arrives, computed or found in the cache, and generated ones as they arrive.
Those that are still owed are counted in the same way, so that cache hits and the mix of prompts and answers are in the measure.
"""

import math
from collections import deque

from server.stream.output_stream import OutputStream

MOST_SECONDS = 600  # longer waits cannot be foreseen
_GUESS = 5  # seconds, until anything was measured
_MEMORY = 30.0  # seconds of work after which what was served counts e times less
_ANSWERS = 64  # latest ends that say how long an answer will be


class Speed:
    """One engine's. Time is passed in; time without open sequences does not count."""

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0  # served, and the time that it took; the past counts less and less
        self._since = 0.0  # up to when time was counted
        self._answers: deque[int] = deque(maxlen=_ANSWERS)

    def begun(self, now: float) -> None:
        """There is work again, after none."""
        self._since = now

    def served(self, tokens: int, now: float) -> None:
        """That many tokens were served since the last call."""
        elapsed = max(0.0, now - self._since)
        kept = math.exp(-elapsed / _MEMORY)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + elapsed
        self._since = now

    def ended(self, generated: int) -> None:
        """A sequence that was served ended after that many tokens, for whatever reason but an error."""
        self._answers.append(generated)

    def expected(self, max_tokens: int) -> float:
        """Tokens that a sequence with this limit can be expected to generate."""
        return min(max_tokens, sum(self._answers) / len(self._answers)) if self._answers else max_tokens

    def owed(self, stream: OutputStream) -> float:
        """Tokens of a sequence that are still to be served."""
        answer = self.expected(stream.request.sampling.max_tokens)
        if stream.lifetime.first_token is None:
            return len(stream.request.prompt_ids) + answer
        return max(0.0, answer - stream.lifetime.completion_tokens)

    def seconds_for(self, tokens: float, now: float) -> int:
        """Whole seconds, 1 to 600, until so many tokens are served; 5 where none was yet."""
        seconds = self._seconds + max(0.0, now - self._since)
        if not self._tokens or not seconds:
            return _GUESS
        return max(1, math.ceil(min(MOST_SECONDS, tokens * seconds / self._tokens)))
