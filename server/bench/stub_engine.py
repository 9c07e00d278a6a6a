"""An engine that computes nothing: every open sequence gets a token a step, at a given pace. Started as engines are.

It imports the messages of the tree it is started in, so that two versions of the server can be measured in one run.
"""

import argparse
import sys
import time
from dataclasses import dataclass, fields
from typing import Any

from engine.ipc.channel import Channel, ParentGone
from scheduler.types.messages import (
    AbortRequests,
    AddRequest,
    EngineStats,
    FinishReason,
    Heartbeat,
    Output,
    Ready,
    RequestTimes,
    SequencesStarted,
    Shutdown,
    StepOutputs,
)
from scheduler.types.trail import Trail

# Of the embedded model: " the", " quick" and so on; a text of ordinary words, a token each.
WORDS = [260, 2365, 6354, 16438, 23790, 690, 260, 10655, 2767, 28]


@dataclass(slots=True)
class Open:
    """A sequence that has not ended."""

    request: AddRequest
    queued: float
    sent: int = 0


class StubEngine:
    """Answers every request with ordinary words, as many as it asks for."""

    def __init__(self, channel: Channel, pause: float) -> None:
        self._channel = channel
        self._pause = pause
        self._open: dict[str, Open] = {}
        self._steps = 0

    def run(self) -> None:
        """Until the server says so, or is gone."""
        self._channel.send(_ready())
        beat = due = time.monotonic()
        while True:
            now = time.monotonic()
            self._channel.wait(max(0.0, (due if self._open else beat + 1.0) - now))
            for command in self._channel.receive():
                if isinstance(command, Shutdown):
                    return
                self._obey(command)
            now = time.monotonic()
            if self._open and now >= due:
                self._step(now)
                due, beat = max(due + self._pause, now), now
            elif now - beat >= 1.0:
                self._channel.send(Heartbeat(doing="idle"))
                beat = now

    def _obey(self, command: object) -> None:
        if isinstance(command, AddRequest):
            self._open[command.request_id] = Open(command, time.monotonic())
            self._channel.send(SequencesStarted(request_ids=[command.request_id]))
        elif isinstance(command, AbortRequests):
            for request_id in command.request_ids:
                self._open.pop(request_id, None)
            if not self._open:
                self._channel.send(step_outputs([], self._stats(), 0.0))

    def _step(self, now: float) -> None:
        outputs = [self._output(sequence, now) for sequence in self._open.values()]
        self._steps += 1
        for output in outputs:
            if output.finish_reason is not None:
                del self._open[output.request_id]
        self._channel.send(step_outputs(outputs, self._stats(), self._pause))

    def _stats(self) -> EngineStats:
        return EngineStats(running=len(self._open), steps=self._steps, blocks_total=1000, blocks_free=1000)

    def _output(self, sequence: Open, now: float) -> Output:
        token = WORDS[sequence.sent % len(WORDS)]
        sequence.sent += 1
        last = sequence.sent == sequence.request.sampling.max_tokens
        output = Output(request_id=sequence.request.request_id, token_ids=[token])
        if sequence.sent == 1 or last:
            output.times = RequestTimes(queued=sequence.queued, scheduled=sequence.queued, first_token=now)
        if last:
            output.finish_reason, output.trail = FinishReason.LENGTH, Trail()
        return output


def step_outputs(outputs: list[Output], stats: EngineStats, seconds: float) -> StepOutputs:
    """As engines of this tree send them."""
    if hasattr(StepOutputs, "packed"):
        return StepOutputs.packed(outputs, stats, len(outputs), seconds)
    return StepOutputs(outputs=outputs, stats=stats, step_tokens=len(outputs), step_seconds=seconds)


def _ready() -> Ready:
    """Whatever this tree's `Ready` has to say."""
    known: dict[str, Any] = {
        "context": 8192,
        "vocab_size": 49152,
        "block_size": 16,
        "blocks": 10_000,
        "eos_token_ids": [2],
        "ends": "",
        "device": "none",
        "version": "stub",
        "computes": "stub",
        "kv_fingerprint": "stub",
        "max_step_tokens": 8192,
        "max_running": 1024,
    }
    return Ready(**{field.name: known[field.name] for field in fields(Ready) if field.name in known})


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pause", type=float, required=True, help="seconds from step to step")
    parser.add_argument("--commands", required=True)
    parser.add_argument("--events", required=True)
    options = parser.parse_args()
    channel = Channel(options.commands, options.events, parent=sys.stdin.fileno())
    try:
        StubEngine(channel, options.pause).run()
    except ParentGone:
        pass
    finally:
        channel.close()


if __name__ == "__main__":
    main()
