"""A peer that speaks the engine's protocol and fails on command: real processes, sockets and signals, scripted timing.

What a request wants is its first prompt id: one of the constants below, else `max_tokens` tokens are sent, one a step.
`--start` says what becomes of the start; `fail:N` fails the first N starts after the first one, counted in a file.
`--gate`: it starts only once this file exists. `--heartbeat`: seconds between heartbeats, which say that it waits for a step that
will not end once one was asked to be `STUCK`.
"""

import argparse
import os
import signal
import sys
import threading
import time
from pathlib import Path

import zmq

from engine.ipc.child import parent_gone
from engine.ipc.codec import MessageCodec
from engine.ipc.curve import PeerKeys, read_keys
from engine.ipc.failures import EXIT_MODEL
from engine.ipc.sockets import connected
from scheduler.types.messages import (
    COMMANDS,
    EVENTS,
    HEARTBEAT_SECONDS,
    AbortRequests,
    AddRequest,
    EngineStats,
    Failed,
    FinishReason,
    Heartbeat,
    MemoryPlan,
    Output,
    Ready,
    RequestTimes,
    SequencesStarted,
    Shutdown,
    StartPhase,
    StepOutputs,
    Stopping,
)

DIE, HANG, HOLD, FAIL, GARBAGE, STUCK, WAIT, BEGIN = 1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008
TOKEN = 7
WORD = 504  # a token that has text at once

COMMAND_CODEC, EVENT_CODEC = MessageCodec(COMMANDS), MessageCodec(EVENTS)
EXIT_ORPHAN = 7
PLAN = MemoryPlan(
    weights=2**20, kv_per_token=1024, block_size=32, blocks=64, activations=2**16, available=2**30,
    max_model_len=4096, context=2048, concurrent=1.0, arithmetic="scripted",
)  # fmt: skip
READY = Ready(
    context=2048,
    vocab_size=5000,
    block_size=32,
    blocks=64,
    eos_token_ids=[2],
    ends="2 </s> (config.json)",
    device="scripted",
    version="0",
    computes="a script",
    kv_fingerprint="a script's",
    max_step_tokens=512,
    max_running=64,
)


class Peer:
    def __init__(self, commands: str, events: str, keys: PeerKeys | None) -> None:
        self.context = zmq.Context()
        prepare = () if keys is None else (keys.apply,)
        self.commands, self.events = (
            connected(self.context, kind, endpoint, *prepare)
            for kind, endpoint in ((zmq.PULL, commands), (zmq.PUSH, events))
        )
        self.open: dict[str, AddRequest] = {}
        self.aborted: list[str] = []
        self.stuck_since: float | None = None
        self.stats = EngineStats(blocks_total=64, blocks_free=64)

    def send(self, event: object) -> None:
        self.events.send(EVENT_CODEC.encode(event))

    def report(self, *outputs: Output) -> None:
        self.stats.running = len(self.open)
        self.stats.steps += 1
        self.send(StepOutputs(outputs=list(outputs), stats=self.stats, step_tokens=len(outputs), step_seconds=0.001))

    def beat(self) -> None:
        if self.stuck_since is None:
            self.send(Heartbeat(doing="idle"))
        else:
            self.send(Heartbeat(doing="step", seconds=time.monotonic() - self.stuck_since, tokens=100))

    def serve(self, heartbeat: float) -> None:
        while True:
            while not self.commands.poll(heartbeat * 1000):
                self.beat()
            match COMMAND_CODEC.decode(self.commands.recv()):
                case Shutdown(flush_seconds=seconds):
                    self.send(Stopping())
                    time.sleep(seconds)  # as if a slow disk took all of it
                    return
                case AbortRequests(request_ids=ids):
                    self.aborted += ids
                    self.open = {key: value for key, value in self.open.items() if key not in ids}
                    self.report()
                case AddRequest() as request:
                    self.add(request)

    def add(self, request: AddRequest) -> None:
        self.open[request.request_id] = request
        if request.prompt_ids[0] != WAIT:
            self.send(SequencesStarted(request_ids=[request.request_id]))
        match request.prompt_ids[0]:
            case 1001:
                self.commands.close()
                self.events.close(linger=10_000)
                self.context.term()  # as soon as everything has been sent
                os.kill(os.getpid(), signal.SIGKILL)
            case 1002:
                time.sleep(3600)
            case 1003 | 1007:
                self.report()
            case 1008:
                self.report(Output(request_id=request.request_id, token_ids=[WORD]))
            case 1004:
                del self.open[request.request_id]
                error = Output(request_id=request.request_id, finish_reason=FinishReason.ERROR, error="scripted")
                self.report(error)
            case 1006:
                self.stuck_since = time.monotonic()
            case 1005:
                self.events.send(b"Nonsense\0")
            case _:
                self.generate(request)

    def generate(self, request: AddRequest) -> None:
        count, now = request.sampling.max_tokens, time.monotonic()
        self.stats.prompt_tokens += len(request.prompt_ids)
        times = RequestTimes(queued=now, scheduled=now, first_token=now, cached_tokens=3, preemptions=1)
        done = len(request.generated_ids)
        for i in range(done, count):
            self.stats.generation_tokens += 1
            if i == count - 1:
                del self.open[request.request_id]
            self.report(
                Output(
                    request_id=request.request_id,
                    token_ids=[TOKEN],
                    finish_reason=FinishReason.LENGTH if i == count - 1 else None,
                    times=times if i in (done, count - 1) else None,
                )
            )


def starts_so_far(counter: Path) -> int:
    before = int(counter.read_text()) if counter.exists() else 0
    counter.write_text(str(before + 1))
    return before


def exit_with_parent() -> None:
    while not parent_gone(0):  # not sys.stdin: its lock, held by a daemon thread, aborts the interpreter's own exit
        pass
    os._exit(EXIT_ORPHAN)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--commands")
    parser.add_argument("--events")
    parser.add_argument("--keys", type=read_keys)
    parser.add_argument("--start", default="ok")
    parser.add_argument("--counter", type=Path)
    parser.add_argument("--gate", type=Path)
    parser.add_argument("--heartbeat", type=float, default=HEARTBEAT_SECONDS)
    options = parser.parse_args()
    threading.Thread(target=exit_with_parent, daemon=True).start()
    peer = Peer(options.commands, options.events, options.keys)
    start, _, number = options.start.partition(":")
    before = starts_so_far(options.counter) if options.counter else 0
    while options.gate is not None and not options.gate.exists():
        time.sleep(0.005)
    if start == "never":
        time.sleep(3600)
    if start == "crash":
        return 9
    if start == "refuse" or (start == "fail" and 1 <= before <= int(number)):
        peer.send(Failed(error="no such weights"))
        return EXIT_MODEL
    peer.send(PLAN)
    peer.send(StartPhase(name="load weights", seconds=0.25))
    peer.send(READY)
    peer.serve(options.heartbeat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
