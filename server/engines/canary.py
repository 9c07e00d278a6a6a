"""The canary: a fixed greedy prompt, whose tokens must stay what they were at the start, by whatever way its KV comes.

Silent corruption shows nowhere else: a wrong block gives a fluent answer. So the canary keeps the KV of its prompt between checks,
where other requests' KV is kept, and reads it again. A difference counts if a second try has it, too: on a GPU the last bits of a
result may depend on what else is in the batch.

It disturbs as little as it can: lowest priority, only where nobody waits and a place is free, given up if it does not start soon;
a salt of its own; it counts for no tenant and in no figure of requests.
"""

import asyncio
import contextlib
import functools
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from configs.settings import Settings
from scheduler.router.view import Role
from scheduler.types.messages import AddRequest, FinishReason
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from server.engines.client import EngineClient
from server.errors import ApiError, Unavailable
from server.stream.output_stream import OutputStream
from server.telemetry.canary import CanaryMetrics, CanaryOutcome, CanaryPath
from server.telemetry.lifetime import Lifetime

_TEXT = "The canary sings the same song each time: one, two, three, four, five, six, seven, eight, nine, ten. "
_BLOCKS = 3  # of the prompt, and a part of one more
_TOKENS = 16  # of the answer
_LOWEST = 2**31 - 1  # priority
_START_SECONDS = 5.0  # less than it takes until a request that waits becomes urgent
_RUN_SECONDS = 60.0
_SAVE_SECONDS = 0.5  # until blocks of a request that ended have been copied to a tier, in a server that is not busy
_log = logging.getLogger("headrace.engine")


class CanaryLifetime(Lifetime):
    """A sequence that counts in no figure of requests."""

    counted = False

    def token_arrived(self, now: float) -> None:
        """As for any sequence, but the gap is nobody's."""
        super().token_arrived(now)


@dataclass(frozen=True, slots=True)
class _Song:
    """What the canary brought. `found`: tokens of its prompt that were not computed; `loaded`: whether they came from a tier."""

    tokens: list[int]
    found: int
    loaded: bool
    handed_over: bool


@dataclass(slots=True)
class _Kept:
    """What is known of one engine: the tokens of the start, what they depend on, and the salt of the KV that is kept."""

    computes: str | None
    tokens: list[int]
    salt: str


class Canary:
    """Checks the engines of one server, one after the other. All calls belong to the event loop's thread.

    Args:
        clients: the engines.
        text: token ids of the prompt's text, which is repeated until it fills some blocks.
        metrics: counts.
        seconds: between two rounds.
        save_seconds: how long copies to a tier are waited for.
    """

    def __init__(
        self,
        clients: Sequence[EngineClient],
        text: Sequence[int],
        metrics: CanaryMetrics,
        seconds: float,
        *,
        save_seconds: float = _SAVE_SECONDS,
    ) -> None:
        self._clients = clients
        self._text = list(text)
        self._metrics = metrics
        self._seconds = seconds
        self._save_seconds = save_seconds
        self._kept: dict[str, _Kept] = {}
        self._alone = asyncio.Lock()

    async def run(self) -> None:
        """Check all engines as soon as they are ready, and then again and again, until cancelled."""
        while True:
            try:
                await self.round()
            except Exception:  # a defect of the canary's is no reason to go without it from now on
                _log.exception("a check by the canary failed")
            waits = any(client.status.state == "starting" for client in self._clients)
            await asyncio.sleep(min(1.0, self._seconds) if waits and not self._kept else self._seconds)

    async def round(self) -> None:
        """One check of each engine that takes requests."""
        async with self._alone:
            for client in self._clients:
                if client.status.usable and _sings(client):
                    await self._check(client)

    async def _check(self, client: EngineClient) -> None:
        kept = self._kept.get(client.name)
        if kept is None or kept.computes != client.status.computes:
            kept = await self._begin(client)
            if kept is None:
                return
        else:
            await self._compare(client, kept, CanaryPath.COLD, _salt())
        await self._compare(client, kept, CanaryPath.WARM, kept.salt)
        if any(tier.up for tier in client.status.stats.tiers.values()):
            await asyncio.sleep(self._save_seconds)
            await self._compare(client, kept, CanaryPath.SWAPPED, kept.salt)
        if client.role is Role.PREFILL and len(self._clients) > 1:
            await self._compare(client, kept, CanaryPath.HANDED_OVER, _salt())

    async def _begin(self, client: EngineClient) -> _Kept | None:
        """The tokens of the start, which later ones are compared with. All engines that compute the same have the same."""
        salt = _salt()
        song = await self._sing(client, CanaryPath.COLD, salt)
        if isinstance(song, CanaryOutcome):
            self._metrics.checked(CanaryPath.COLD, song)
            return None
        alike = next((each for each in self._kept.values() if each.computes == client.status.computes), None)
        kept = _Kept(client.status.computes, song.tokens if alike is None else alike.tokens, salt)
        self._kept[client.name] = kept
        self._tell(client, CanaryPath.COLD, song.tokens, kept)
        return kept

    async def _compare(self, client: EngineClient, kept: _Kept, path: CanaryPath, salt: str) -> None:
        """Check one way, twice if there is a difference."""
        for attempt in (1, 2):
            song = await self._sing(client, path, salt)
            if isinstance(song, CanaryOutcome):
                self._metrics.checked(path, song)
                return
            if not _came_by(path, song):
                self._metrics.checked(path, CanaryOutcome.SKIPPED)
                return
            if song.tokens == kept.tokens or attempt == 2:
                self._tell(client, path, song.tokens, kept)
                if song.tokens != kept.tokens:
                    kept.salt = _salt()  # what is kept is no good
                return

    def _tell(self, client: EngineClient, path: CanaryPath, tokens: list[int], kept: _Kept) -> None:
        if tokens == kept.tokens:
            self._metrics.checked(path, CanaryOutcome.EQUAL)
            return
        self._metrics.checked(path, CanaryOutcome.DIFFERS)
        at = next(
            (i for i, pair in enumerate(zip(tokens, kept.tokens, strict=False)) if pair[0] != pair[1]), len(tokens)
        )
        _log.error(
            "%s: the canary's tokens differ from those of the start from token %d on (KV %s): what it answers may be wrong",
            client.name,
            at,
            path.value,
        )

    async def _sing(self, client: EngineClient, path: CanaryPath, salt: str) -> _Song | CanaryOutcome:
        """Run the prompt once."""
        try:
            return await asyncio.wait_for(self._run(client, path, salt), _RUN_SECONDS)
        except (TimeoutError, Unavailable):  # that an engine ended is told elsewhere
            return CanaryOutcome.SKIPPED
        except ApiError as error:
            _log.warning("%s: the canary failed: %s", client.name, error.message)
            return CanaryOutcome.FAILED

    async def _run(self, client: EngineClient, path: CanaryPath, salt: str) -> _Song | CanaryOutcome:
        if not client.status.usable or client.waiting or _is_full(client):
            return CanaryOutcome.SKIPPED
        prompt = self._prompt(client)
        lifetime = CanaryLifetime(received=time.monotonic(), prompt_tokens=len(prompt))
        request = AddRequest(
            request_id=f"canary-{secrets.token_hex(8)}-0",
            prompt_ids=prompt,
            sampling=SamplingParams(max_tokens=_TOKENS, temperature=0.0, ignore_eos=True, speculation=False),
            priority=_LOWEST,
            cache_salt=salt,
            tenant="canary",
            from_tiers=path is CanaryPath.SWAPPED,
            hand_over=path is CanaryPath.HANDED_OVER,
        )
        tokens: list[int] = []
        async with contextlib.aclosing(client.submit(request, lifetime)) as stream:
            give_up = functools.partial(_close_unless_started, stream)
            timer = asyncio.get_running_loop().call_later(_START_SECONDS, give_up)
            try:
                async for output in stream:
                    tokens += output.token_ids
            finally:
                timer.cancel()
        if lifetime.reason is FinishReason.ERROR:
            return CanaryOutcome.FAILED
        if lifetime.reason is not FinishReason.LENGTH or lifetime.replays:  # perhaps by another engine
            return CanaryOutcome.SKIPPED
        runs = lifetime.runs
        loaded = any(run.trail.loads for run in runs)
        return _Song(tokens, lifetime.cached_tokens, loaded, len({run.engine for run in runs}) > 1)

    def _prompt(self, client: EngineClient) -> list[int]:
        info = client.status.info
        size = 32 if info is None else info.block_size
        length = _BLOCKS * size + size // 2
        if info is not None:
            length = max(1, min(length, info.context - _TOKENS))
        return [token for _, token in zip(range(length), _endless(self._text), strict=False)]


def canary_of(
    settings: Settings, clients: Sequence[EngineClient], text_ids: Callable[[str], list[int]], metrics: CanaryMetrics
) -> Canary | None:
    """The canary of a server, if it has one; `text_ids` tokenizes."""
    return Canary(clients, text_ids(_TEXT), metrics, 60 * settings.canary) if settings.canary else None


def _sings(client: EngineClient) -> bool:
    """Whether its model makes text."""
    info = client.status.info
    return info is not None and OutputKind.TOKENS in info.produces


def _is_full(client: EngineClient) -> bool:
    """Whether all places are taken: it would stand in line, and count among those that wait."""
    info = client.status.info
    return info is not None and client.open_count >= info.max_running


def _came_by(path: CanaryPath, song: _Song) -> bool:
    """Whether the KV came the way that was to be checked."""
    match path:
        case CanaryPath.COLD:
            return not song.found
        case CanaryPath.WARM:
            return song.found > 0
        case CanaryPath.SWAPPED:
            return song.loaded
        case CanaryPath.HANDED_OVER:
            return song.handed_over


def _close_unless_started(stream: OutputStream) -> None:
    """The engine has something better to do."""
    if not stream.started:
        stream.close()


def _endless(ids: Sequence[int]) -> Iterator[int]:
    while True:
        yield from ids


def _salt() -> str:
    """A salt that no client's can equal: theirs begin with what their key gives, or with what they say."""
    return f"canary:{secrets.token_hex(16)}"
