"""From a request to what its key is charged: counted as it comes in, reserved as it is submitted, exact at its end.

A request of a key is one `RequestMeter`, and each job that it submits one `TokenCharge`. It is over when its answer is and nothing
that it submitted is computed any more: a resumable stream goes on when its client has left.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from scheduler.types.messages import FinishReason
from server.errors import RateLimited
from server.keys.allowance import Headers, KeyAllowance, LocalAllowance
from server.keys.entry import KeyLimits
from server.keys.usage import Use, UseBook
from server.telemetry.lifetime import Exchange, Lifetime
from server.telemetry.tenants import KeyMetrics

# Output tokens of a sequence that are reserved before there is one. A request may ask for all that the context has room for, and
# most answers are shorter than this: what is longer is booked as it comes.
RESERVED_TOKENS = 512
_COMPLETE = (FinishReason.STOP, FinishReason.LENGTH)


class Accounts:
    """The accounts of all keys, made as they are first used. All calls belong to the event loop's thread.

    Args:
        book: where the use of each key is written down.
        metrics: of keys.
        allowance: makes the counters of a key.
    """

    def __init__(
        self,
        book: UseBook,
        metrics: KeyMetrics,
        allowance: Callable[[KeyLimits], KeyAllowance] = lambda limits: LocalAllowance(limits, time.monotonic),
    ) -> None:
        self.book, self.metrics = book, metrics
        self._allowance = allowance
        self._accounts: dict[str, Account] = {}
        self._beside: dict[str, Account] = {}

    def of(self, key: str, limits: KeyLimits) -> "Account":
        """The account of the key of this name, which must be one that an operator gave: it becomes a label."""
        account = self._accounts.get(key)
        if account is None:
            account = self._accounts[key] = Account(key, limits, self, self._allowance(limits))
        elif account.limits != limits:
            account.limit_to(limits)
        return account

    def beside(self, key: str) -> "Account":
        """The account of a key for what runs at idle priority: it is written down with the rest, and no limit holds for it."""
        account = self._beside.get(key)
        if account is None:
            account = self._beside[key] = Account(key, KeyLimits(), self, self._allowance(KeyLimits()))
        return account

    def follow(self, keys: Iterable[tuple[str, KeyLimits]]) -> None:
        """Take up the limits of these keys, and show the keys in metrics before they are used."""
        for key, limits in keys:
            self.of(key, limits)

    def look(self) -> None:
        """Book what open requests have generated so far, so that it begins to leak."""
        for account in self._accounts.values():
            account.look()


class Account:
    """One key's."""

    def __init__(self, key: str, limits: KeyLimits, accounts: Accounts, allowance: KeyAllowance) -> None:
        self.key, self.limits, self.allowance = key, limits, allowance
        self._accounts = accounts
        self._series = accounts.metrics.known(key)
        self._charges: dict[TokenCharge, None] = {}  # whose tokens are still to come

    def limit_to(self, limits: KeyLimits) -> None:
        """Other limits, for all that comes in from now on."""
        self.limits = limits
        self.allowance.limit_to(limits)

    def headers(self) -> Headers:
        """What is told with every answer."""
        return self.allowance.headers()

    def begin(self, exchange: Exchange) -> "RequestMeter":
        """A request that counts.

        Raises:
            RateLimited: it may not come in; that is written down.
        """
        try:
            begun = self.allowance.begin()
        except RateLimited as error:
            self.refused(error)
            self._write_down("", Use(limited=1))
            raise
        self._series.request_begun()
        return RequestMeter(self, exchange, begun)

    def reserve(self, used: int, expected: int) -> int:
        """`KeyAllowance.reserve`, after a look at what is open if it does not pass at once."""
        with suppress(RateLimited):
            return self.allowance.reserve(used, expected)
        self.look()
        try:
            return self.allowance.reserve(used, expected)
        except RateLimited as error:
            self.refused(error)
            self.allowance.take_back()
            raise

    def refused(self, error: RateLimited) -> None:
        """A request of this key was over a limit."""
        self._accounts.metrics.request_limited(self.key, error.limit)

    def look(self) -> None:
        """See `Accounts.look`."""
        for charge in self._charges:
            charge.book()

    def opened(self, charge: "TokenCharge") -> None:
        """Its tokens are to come."""
        self._charges[charge] = None

    def closed(self, charge: "TokenCharge") -> None:
        """None of its tokens is to come any more."""
        self._charges.pop(charge, None)

    def ended(self, begun: float, model: str, use: Use) -> None:
        """A request is over, and this is all that it used."""
        self.allowance.end(begun, served=not use.limited and not use.errors)
        self._series.request_ended(use)
        self._write_down(model, use)

    def _write_down(self, model: str, use: Use) -> None:
        self._accounts.book.add(self.key, model, use)


class RequestMeter:
    """One request of a key, from the moment it was let in."""

    def __init__(self, account: Account, exchange: Exchange, begun: float) -> None:
        self._account, self._exchange, self._begun = account, exchange, begun
        self._use = Use(requests=1)
        self._model = ""
        self._holds = 1  # by its answer, and by each charge

    def charge(self, model: str, sequences: Sequence[tuple[int, int]], lifetimes: Sequence[Lifetime]) -> "TokenCharge":
        """Charge a job before it is submitted. The charge must be settled, whatever happens.

        Args:
            model: the name that the answer carries.
            sequences: prompt tokens of each, 0 for a further choice of a prompt; and its `max_tokens`.
            lifetimes: of those that were submitted, in the same order; it is empty yet.

        Raises:
            RateLimited: `tokens_per_minute` has no room for it.
        """
        prompt = sum(tokens for tokens, _ in sequences)
        try:
            reserved = self._account.reserve(prompt, sum(min(most, RESERVED_TOKENS) for _, most in sequences))
        except RateLimited:
            self._use.limited, self._use.requests = 1, 0
            raise
        self._model, self._holds = model, self._holds + 1
        charge = TokenCharge(self._account, self, [tokens for tokens, _ in sequences], reserved, lifetimes)
        self._account.opened(charge)
        return charge

    def settled(self, prompt: int, cached: int, generated: int) -> None:
        """A charge is settled, with these tokens."""
        self._use.prompt_tokens += prompt
        self._use.cached_tokens += cached
        self._use.completion_tokens += generated
        self._let_go()

    def answered(self) -> None:
        """Its answer is over: sent, or its client has left."""
        self._let_go()

    def _let_go(self) -> None:
        self._holds -= 1
        if self._holds == 0:
            self._use.errors = int(self._exchange.error_code is not None and not self._use.limited)
            self._account.ended(self._begun, self._model, self._use)


class TokenCharge:
    """The tokens of one job."""

    def __init__(
        self,
        account: Account,
        meter: RequestMeter,
        prompts: Sequence[int],
        reserved: int,
        lifetimes: Sequence[Lifetime],
    ) -> None:
        self._account, self._meter = account, meter
        self._prompts, self._lifetimes = prompts, lifetimes
        self._booked = sum(prompts)
        self._reserved = reserved
        self._settled = False

    def book(self) -> None:
        """Book what has arrived by now."""
        self._book(sum(self._prompts) + sum(len(lifetime.output_ids) for lifetime in self._lifetimes))

    def settle(self) -> None:
        """Nothing more is computed: book what was, and give back what was reserved. Of sequences that were not submitted nothing is
        charged; of one that was ended before its end, all that had arrived from the engine, whether or not anybody read it."""
        if self._settled:
            return
        self._settled = True
        submitted = list(zip(self._prompts, self._lifetimes, strict=False))
        prompt = sum(tokens for tokens, _ in submitted)
        cached = sum(lifetime.cached_tokens for tokens, lifetime in submitted if tokens)
        generated = sum(map(_generated, self._lifetimes))
        self._book(prompt + generated)
        self._account.allowance.book(0, self._reserved)
        self._account.closed(self)
        self._meter.settled(prompt, cached, generated)

    def _book(self, used: int) -> None:
        more = used - self._booked
        released = min(max(0, more), self._reserved)
        self._account.allowance.book(more, released)
        self._booked, self._reserved = used, self._reserved - released


def _generated(lifetime: Lifetime) -> int:
    """Tokens of a sequence that has ended: as `usage` of the answer counts them, if it came to its end."""
    if lifetime.reason in _COMPLETE:
        return lifetime.completion_tokens
    return max(lifetime.completion_tokens, len(lifetime.output_ids))
