"""What a step takes, learnt from the steps that ran.

    seconds = step + token * prompt tokens + key * keys they read + decode * decodes + decode key * keys they read

The five constants are fitted to recent steps by non-negative least squares, in which an error weighs less the longer the step
(coordinate descent: Franc, Hlavac and Navara 2005, "Sequential coordinate-wise algorithm for the non-negative least squares
problem"). What a step of the mix at hand takes is thereby known from steps of any other mix. Until steps were seen, guesses
stand in.
"""

from collections import deque

from scheduler.types.step import StepWork

_MEMORY = 0.998  # weight of a step relative to the next one: about 500 steps count
_SOLVE_EVERY = 32  # steps, once so many were seen; before, each time their number has doubled
_SWEEPS = 24
_RECENT = 0.9  # weight of the steps before beside a new one, in the mix that sequences decode beside
_UNREAD = 512  # steps that nobody has asked about: older ones would hardly count
_ENOUGH = 8  # steps with prompts, before what they cost counts as known
_UNSEEN = 1e-9  # of the weight of all steps: less says nothing about a constant
# As if one step more had read so many keys in no time. Steps that read few do not tell what many cost: else what else made some of
# them slow is put down to keys, and comes back a thousandfold in what a long prompt is expected to take.
_KEYS_DOUBTED = 10_000
# The order in which time is explained: what tells engines apart first, so that few steps lead to no constant of its own.
_GUESS = (2e-4, 5e-4, 5e-3, 0.0, 0.0)  # prompt token, decode, step, prompt key, decode key


class StepCost:
    """The cost of one replica's steps. All replicas start with the same guess, so unmeasured ones are equal.

    Attributes:
        measured: whether enough steps with prompts were seen to rely on the costs.
    """

    def __init__(self) -> None:
        size = len(_GUESS)
        self._constants = list(_GUESS)
        self._products = [[0.0] * size for _ in range(size)]  # of features with each other, summed over steps
        self._targets = [0.0] * size  # of features with seconds
        self._steps = 0  # seen
        self._solved = 0  # of these, those that are in the constants
        self._prompt_steps = 0
        self._beside = (0.0, 0.0)  # see `beside_decodes`
        self._unread = deque[tuple[StepWork, float]](maxlen=_UNREAD)

    @property
    def measured(self) -> bool:
        """Whether enough steps with prompts were seen."""
        if self._unread:
            self._read()
        return self._prompt_steps >= _ENOUGH

    @property
    def beside_decodes(self) -> tuple[float, float]:
        """Prompt tokens, and the keys that they read, in a recent step in which sequences decoded, on average."""
        if self._unread:
            self._read()
        return self._beside

    def observe(self, work: StepWork, seconds: float) -> None:
        """A step took so long; 0 if that was not measured. It costs next to nothing until somebody asks: a server of one engine
        never does."""
        if seconds > 0 and work.prompt_tokens + work.decodes:
            self._unread.append((work, seconds))

    def _read(self) -> None:
        while self._unread:
            self._learn(*self._unread.popleft())

    def _learn(self, work: StepWork, seconds: float) -> None:
        features = _features(work)
        for row, feature in zip(self._products, features, strict=True):
            for column, other in enumerate(features):
                row[column] = row[column] * _MEMORY + feature * other / seconds
        for index, feature in enumerate(features):
            self._targets[index] = self._targets[index] * _MEMORY + feature
        if work.decodes:
            tokens, keys = self._beside
            self._beside = (
                _RECENT * tokens + (1 - _RECENT) * work.prompt_tokens,
                _RECENT * keys + (1 - _RECENT) * work.prompt_keys,
            )
        self._steps += 1
        self._prompt_steps += work.prompt_tokens > 0
        if self._steps >= min(2 * self._solved, self._solved + _SOLVE_EVERY):
            self._solve()

    def seconds(self, work: StepWork, steps: float = 1.0) -> float:
        """What `steps` steps take with this work in all of them together."""
        return self.seconds_of(work.prompt_tokens, work.prompt_keys, work.decodes, work.decode_keys, steps)

    def seconds_of(
        self, prompt_tokens: float, prompt_keys: float, decodes: float, decode_keys: float, steps: float = 1.0
    ) -> float:
        """The same, of numbers: a router asks several times for each replica and request."""
        if self._unread:
            self._read()
        token, decode, step, key, decode_key = self._constants
        return token * prompt_tokens + decode * decodes + step * steps + key * prompt_keys + decode_key * decode_keys

    @property
    def token_seconds(self) -> float:
        """What a prompt token costs in a step that runs anyhow, without the keys it reads."""
        self._read()
        return self._constants[0]

    def _solve(self) -> None:
        self._solved = self._steps
        constants, products = self._constants, self._products
        seen = [products[index][index] > _UNSEEN * products[2][2] for index in range(len(constants))]
        if not self._prompt_steps or self._steps < 2:
            return
        counted = (1 - _MEMORY**self._steps) / (1 - _MEMORY)
        doubt = _KEYS_DOUBTED**2 * products[2][2] / counted
        doubts = (0.0, 0.0, 0.0, doubt, doubt)
        for _ in range(_SWEEPS):
            for index, row in enumerate(products):
                if seen[index]:
                    gradient = sum(a * b for a, b in zip(row, constants, strict=True)) - self._targets[index]
                    gradient += doubts[index] * constants[index]
                    constants[index] = max(0.0, constants[index] - gradient / (row[index] + doubts[index]))


def _features(work: StepWork, steps: float = 1.0) -> tuple[float, float, float, float, float]:
    """What each constant multiplies, in the order of `_GUESS`."""
    return float(work.prompt_tokens), float(work.decodes), steps, float(work.prompt_keys), float(work.decode_keys)
