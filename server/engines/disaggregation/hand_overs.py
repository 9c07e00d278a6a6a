"""Sequences whose prompt one engine has computed, on their way to the engine that decodes them.

A hand-over is a planned replay: the next engine is given the request with its first token as `generated_ids`, and finds the KV in a
tier that both share. What is not there in time it computes. So nothing depends on either engine, and the client sees one stream.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from scheduler.router.split import Split
from scheduler.types.messages import AddRequest, RequestTimes
from scheduler.types.step import ChunkPhase
from server.engines.replay import Host
from server.stream.output_stream import OutputStream
from server.telemetry.hand_overs import HandOverMetrics

_log = logging.getLogger("headrace.engine")


class Peer(Host, Protocol):
    """As much of an engine's client as is needed here."""

    @property
    def name(self) -> str:
        """Its name among the engines."""

    def serves(self, prompt_ids: Sequence[int]) -> bool:
        """Whether a sequence of this prompt, the very object, is open there."""

    def take_over(self, stream: OutputStream, kv_wait_seconds: float) -> None:
        """Go on with a sequence, for whose KV it may wait so long."""

    def orphan(self, stream: OutputStream) -> None:
        """Have a sequence wait until an engine can go on with it."""


class HandOvers:
    """Finds for each sequence the engine that goes on with it. All calls belong to the event loop's thread.

    Args:
        peers: all engines.
        choose: the best of some of them for the decodes of a request.
        wait_seconds: how long KV of a request is worth waiting for: until it would have been computed.
        split: learns how long hand-overs take.
        metrics: counts.
    """

    def __init__(
        self,
        peers: Sequence[Peer],
        choose: Callable[[AddRequest, Sequence[Peer]], Peer],
        wait_seconds: Callable[[AddRequest], float],
        split: Split,
        metrics: HandOverMetrics,
    ) -> None:
        self._peers = tuple(peers)
        self._choose = choose
        self._wait_seconds = wait_seconds
        self._split = split
        self._metrics = metrics
        self._refused: set[tuple[str, str]] = set()

    def take(self, source: Peer, stream: OutputStream) -> None:
        """The prompt is computed: find an engine for what follows.

        That is one which is meant for decodes; else the same one, else any.
        """
        target = self._target(source, stream)
        if target is None:
            self._metrics.counted("waits")
            source.orphan(stream)
            return
        stays = target is source
        if stays:
            self._metrics.counted("stays")
        stream.handed_over = None if stays else time.monotonic()
        target.take_over(stream, 0.0 if stays else self._wait_seconds(stream.request))

    def arrived(self, target: Peer, stream: OutputStream, times: RequestTimes) -> None:
        """The first token after a hand-over has arrived."""
        began, stream.handed_over = stream.handed_over, None
        if began is None:
            return
        known = len(stream.generated_ids) + len(stream.request.prompt_ids)  # this token is not among them yet
        computed = known - times.cached_tokens
        outcome = "loaded" if computed <= _block_size(target) else "computed"
        seconds = time.monotonic() - began
        self._split.handed_over(seconds)
        self._metrics.arrived(outcome, seconds, times.cached_tokens, computed)

    def _target(self, source: Peer, stream: OutputStream) -> Peer | None:
        if source.status.usable and source.role.takes(ChunkPhase.DECODE):  # its role has changed meanwhile
            return source
        able = [peer for peer in self._peers if peer.status.usable and self._accepts(source, peer)]
        decoding = [peer for peer in able if peer.role.takes(ChunkPhase.DECODE)]
        if not decoding and source.status.working:
            return source
        found = decoding or able
        prompt = stream.request.prompt_ids
        # Its choices share their prompt's blocks.
        together = next((peer for peer in found if peer.serves(prompt)), None)
        if together is not None or not found:
            return together
        return self._choose(stream.request, found)

    def _accepts(self, source: Peer, target: Peer) -> bool:
        """Whether the target computes what the source does, over blocks of the same size. If not, the log says so once."""
        why = None
        if target.status.computes != source.status.computes:
            why = f"it computes `{target.status.computes}`, the other `{source.status.computes}`"
        elif _block_size(target) != _block_size(source):
            why = f"its KV blocks have {_block_size(target)} tokens, the other's {_block_size(source)}"
        pair = (source.name, target.name)
        if why is not None and pair not in self._refused:
            self._refused.add(pair)
            _log.warning("%s: is handed no requests of %s: %s", target.name, source.name, why)
        return why is None


def _block_size(peer: Peer) -> int:
    """Tokens of one of its KV blocks; 0 if it was never ready."""
    return 0 if peer.status.info is None else peer.status.info.block_size
