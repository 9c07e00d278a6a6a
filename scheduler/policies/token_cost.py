"""What a generated token costs in prompt tokens, given or measured from the steps that ran.

A prompt token shares its step's products with many others; a token of a decoding sequence has a row of its own, its own
sampling, and its share of reading the weights. The ratio depends on the device and on the batch (3.3 to 5.9 by the fitted costs
of two CPU cores with the embedded model; more on an accelerator, where prompts ride along while the weights are read), so it is
measured: seconds = a * prompt tokens + b * decodes is fitted to recent steps by least squares, and the cost is b / a. A step's
fixed time is thereby distributed over its tokens.
"""

DEFAULT = 2.0  # until enough steps were measured; the paper's w_q / w_p
LEAST, MOST = 1.0, 8.0  # bounds of a measured cost: noise must not reverse who goes first
_MEMORY = 0.998  # weight of a step relative to the next one: about 500 steps count
_ENOUGH = 64.0  # steps, weighted in this way, before the measured cost is used


class TokenCost:
    """The cost of a generated token, where a prompt token costs 1.

    Args:
        decode: the cost if it is given; measured if None.

    Attributes:
        decode: the cost as it is known now.
        measures: whether steps refine it.
    """

    def __init__(self, decode: float | None = None) -> None:
        self.decode = DEFAULT if decode is None else decode
        self.measures = decode is None
        self._steps = 0.0
        self._pp = self._pd = self._dd = self._ps = self._ds = 0.0  # sums of products: prompt, decodes, seconds

    def observe(self, prompt: int, decodes: int, seconds: float) -> None:
        """A step of `prompt` prompt tokens and `decodes` generated ones took `seconds`; 0 if that was not measured."""
        if not self.measures or seconds <= 0 or not prompt + decodes:
            return
        # Long steps must not outweigh the others: each is divided by its tokens, so that all weigh the same.
        tokens = prompt + decodes
        p, d, s = prompt / tokens, decodes / tokens, seconds / tokens
        self._steps = self._steps * _MEMORY + 1
        self._pp = self._pp * _MEMORY + p * p
        self._pd = self._pd * _MEMORY + p * d
        self._dd = self._dd * _MEMORY + d * d
        self._ps = self._ps * _MEMORY + p * s
        self._ds = self._ds * _MEMORY + d * s
        if self._steps >= _ENOUGH:
            self._solve()

    def _solve(self) -> None:
        spread = self._pp * self._dd - self._pd * self._pd
        if spread <= 1e-3 * self._steps:  # steps of one kind alone say nothing about the other
            return
        prompt = self._ps * self._dd - self._ds * self._pd
        decode = self._ds * self._pp - self._ps * self._pd
        if prompt > 0:
            self.decode = min(MOST, max(LEAST, decode / prompt))
