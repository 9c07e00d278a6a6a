"""What is open in a replica, as its caller knows it: prompts still to be computed, and sequences that decode.

Kept from what is sent there and what comes back, so that it holds what was sent a moment ago and needs nothing to be asked.
What belongs here: the counts. Never: seconds, policies.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from scheduler.types.step import StepWork

_ANSWERS = 64  # latest ends that say how long an answer will be
_MOST_OF_IT = 0.5  # of its limit, that an answer which is longer than most can be expected to take


@dataclass(slots=True, kw_only=True)
class OpenSequence:
    """One sequence.

    Attributes:
        prompt: tokens of its prompt, and those that were generated before it came here.
        computes: of these, those that are computed here.
        limit: most tokens it will still generate.
        names: of the blocks of its prompt, if they are known.
        started: whether it has been admitted.
        first_step: the count of steps when its first token came; None: not yet.
    """

    prompt: int
    computes: int
    limit: int
    names: Sequence[bytes] = ()
    started: bool = False
    first_step: int | None = None

    @property
    def keys(self) -> int:
        """Keys that the tokens of its prompt read that are computed here."""
        return keys_of(self.prompt, self.prompt - self.computes)


def keys_of(end: int, begin: int = 0) -> int:
    """Keys that the tokens [begin, end) of a sequence read: each reads those before it, and itself."""
    return (end * (end + 1) - begin * (begin + 1)) // 2


class OpenSequences:
    """The open sequences of one replica, in the order in which they came.

    Attributes:
        by_id: each of them.
        running: how many have been admitted.
        decodes: how many have had their first token.
        usual_answer: tokens of a recent answer, on average; 0 if there was none.
    """

    def __init__(self) -> None:
        self.by_id: dict[str, OpenSequence] = {}
        self.running = self.decodes = 0
        self._tokens = self._keys = 0  # of all prompts without a first token
        self._done_tokens = self._done_keys = 0  # of these, computed
        self._steps = 0  # in which sequences decoded
        self._lengths = 0  # of the sequences that decode, less the steps at their first tokens
        self._answers: list[int] = []
        self.usual_answer = 0.0

    def __len__(self) -> int:
        return len(self.by_id)

    # --- what happens ---

    def submitted(self, request_id: str, sequence: OpenSequence) -> None:
        """It was sent to the replica."""
        self.by_id[request_id] = sequence
        self._tokens += sequence.computes
        self._keys += sequence.keys

    def started(self, request_id: str) -> None:
        """It was admitted."""
        sequence = self.by_id.get(request_id)
        if sequence is not None and not sequence.started:
            sequence.started = True
            self.running += 1

    def step_ended(self, work: StepWork, steps: int = 1) -> None:
        """So many equal steps ended; what they brought is told afterwards."""
        if work.prompt_tokens:
            self._done_tokens = min(self._tokens, self._done_tokens + work.prompt_tokens)
            self._done_keys = min(self._keys, self._done_keys + work.prompt_keys)
        if work.decodes:
            self._steps += steps

    def first_token(self, request_id: str) -> None:
        """Its prompt is computed."""
        sequence = self.by_id.get(request_id)
        if sequence is None or sequence.first_step is not None:
            return
        self.started(request_id)
        self._prompt_gone(sequence)
        sequence.first_step = self._steps
        self.decodes += 1
        self._lengths += sequence.prompt - self._steps

    def ended(self, request_id: str) -> OpenSequence | None:
        """It ended, whatever the reason. Returns what it was; None if it is not open."""
        sequence = self.by_id.pop(request_id, None)
        if sequence is None:
            return None
        self.running -= sequence.started
        if sequence.first_step is None:
            self._prompt_gone(sequence)
        else:
            self.decodes -= 1
            self._lengths -= sequence.prompt - sequence.first_step
            self._answers = [*self._answers[1 - _ANSWERS :], self._steps - sequence.first_step + 1]
            self.usual_answer = sum(self._answers) / len(self._answers)
        return sequence

    def _prompt_gone(self, sequence: OpenSequence) -> None:
        self._tokens -= sequence.computes
        self._keys -= sequence.keys
        done_tokens, done_keys = self._done_tokens, self._done_keys
        if sequence.started:  # of one that was never admitted nothing has been computed
            done_tokens, done_keys = max(0, done_tokens - sequence.computes), max(0, done_keys - sequence.keys)
        self._done_tokens, self._done_keys = min(self._tokens, done_tokens), min(self._keys, done_keys)

    # --- what follows ---

    @property
    def waiting_tokens(self) -> int:
        """Tokens of prompts that are still to be computed."""
        return self._tokens - self._done_tokens

    @property
    def waiting_keys(self) -> int:
        """Keys that these tokens read."""
        return self._keys - self._done_keys

    @property
    def decode_keys(self) -> int:
        """Keys that the next decode of all sequences reads: the sum of their lengths."""
        return max(0, self._lengths + self.decodes * self._steps)

    def length(self, sequence: OpenSequence) -> int:
        """Tokens of its prompt and of its output so far."""
        return sequence.prompt + self._generated(sequence)

    def _generated(self, sequence: OpenSequence) -> int:
        return 0 if sequence.first_step is None else self._steps - sequence.first_step

    def steps_left(self, sequence: OpenSequence) -> int:
        """Steps until it will have ended, by its limit and the length of recent answers; at least 1."""
        generated, end = self._generated(sequence), float(sequence.limit)
        if self._answers:
            usual = self.usual_answer
            end = min(end, usual) if generated < usual else generated + _MOST_OF_IT * (end - generated)
        return max(1, round(end) - generated)
