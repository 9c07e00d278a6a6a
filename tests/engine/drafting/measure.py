"""What guesses from a request's own text gain on a CPU, and cost where nothing repeats: no server, no sockets, one worker.

    python -m tests.engine.drafting.measure [--model PATH] [--draft-model PATH] [--rounds N] [--case NAME ...]

Each case runs with and without guesses, one after the other, and both have to give the same tokens. Printed: tokens a second of the
steps that only decode, without guesses; the median of the paired ratios, the lowest and the highest; guesses made and right. With a
draft model, who guesses is the same through all rounds, as in a server, and learns in one before them, which does not count; what
the draft's own steps take counts, KV of prompts too.
"""

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.cpu.backend import CpuBackend
from engine.drafting.registry import drafter_of
from engine.grammar.matchers import Grammars
from engine.models.registry import read_config
from scheduler.drafting import Drafter
from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest, EngineStats
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase
from server.text import load_tokenizer

CODE = """def mean(values):
    total = 0
    for value in values:
        total += value
    return total / len(values)


def variance(values):
    center = mean(values)
    total = 0
    for value in values:
        total += (value - center) ** 2
    return total / len(values)


def median(values):
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2
"""
PROSE = (
    "The ship left the harbour at dawn. The captain had not slept, and the crew knew it. Two days later a storm broke over them; "
    "the mast fell, and three men were lost. They reached the island on the fifth day, and found water, fruit and the remains of "
    "another ship."
)
QUESTIONS = (
    "Write a Python function that parses a CSV line with quotes into fields, with tests.",
    "Write a C++ class for a ring buffer of ints with push and pop.",
    "Write JavaScript code that debounces a function, and explain it by a usage example.",
    "Implement binary search tree insertion and deletion in Python.",
    "Write a SQL schema for a library with books, members and loans.",
    "Write a Go program that reads a file and counts words.",
    "Write a story about a lighthouse keeper who finds a bottle.",
    "Explain how a suspension bridge carries its load.",
)
TASKS = {
    "edit": f"Repeat this code, but rename the function mean to average:\n```python\n{CODE}```",
    "repeat": f"Repeat the following text word for word:\n{PROSE}",
    "quote": f"Summarize this text and quote its sentences:\n{PROSE}",
    **{f"code {i}": text for i, text in enumerate(QUESTIONS[:6])},
    "story": QUESTIONS[6],
    "explain": QUESTIONS[7],
}


class Case(NamedTuple):
    """Requests that run side by side."""

    tasks: Sequence[str]  # a request each
    random: int  # further ones of 64 random tokens
    tokens: int  # of each answer
    temperature: float


CASES = {
    **{f"{task}, 1 stream": Case([task], 0, 160, 0.0) for task in TASKS},
    "code 0, 1 stream, temperature 0.8": Case(["code 0"], 0, 160, 0.8),
    "8 streams, code and prose": Case([task for task in TASKS if task not in ("edit", "repeat", "quote")], 0, 96, 0.0),
    "edit, 1 stream, temperature 0.8": Case(["edit"], 0, 160, 0.8),
    "8 streams, mixed": Case(["edit", "repeat", "quote"], 5, 96, 0.0),
    **{f"random, {n} streams": Case([], n, tokens, 1.0) for n, tokens in ((1, 128), (8, 96), (32, 48), (64, 48))},
}


class DraftGain:
    """One model on this CPU."""

    def __init__(self, model: str | None, threads: int | None, draft: str | None = None) -> None:
        source = resolve_model(model)
        self._config = read_config(source)
        settings = Settings(
            device="cpu", kv_blocks=512, threads=threads, speculation="draft" if draft else "lookup", draft_model=draft
        )
        startup = Startup(settings, source, self._config, lambda name: nullcontext(), lambda work: work())
        backend = CpuBackend(startup, "measured")
        self._plan = backend.plan()
        self._worker = backend.load(self._plan)
        self._settings = settings
        self._encode = load_tokenizer(source.path).encode
        self._runs = 0
        self._learning = backend.drafter if draft else None

    def drafter(self) -> Drafter:
        """One that has learnt nothing yet, or, with a draft model, the engine's."""
        if self._learning is not None:
            return self._learning
        return drafter_of(self._settings, Grammars(self._config.vocab_size, ()), at_once=True, auto=True)

    def run(self, case: Case, drafter: Drafter | None) -> tuple[float, dict[str, list[int]], EngineStats]:
        """Tokens a second of steps that only decode, all answers, and what the scheduler counted."""
        self._runs += 1  # each is another's, so that none finds answers of the one before
        rng = random.Random(0)
        prompts = [self._encode(f"<|im_start|>user\n{TASKS[t]}<|im_end|>\n<|im_start|>assistant\n") for t in case.tasks]
        prompts += [
            [rng.randrange(1000, self._config.vocab_size - 1000) for _ in range(64)] for _ in range(case.random)
        ]
        scheduler = self._scheduler(drafter)
        for i, prompt in enumerate(prompts):
            sampling = SamplingParams(max_tokens=case.tokens, temperature=case.temperature, seed=i, ignore_eos=True)
            scheduler.add(
                AddRequest(request_id=str(i), prompt_ids=[*prompt], sampling=sampling, tenant=f"run {self._runs}"), 0.0
            )
        answers: dict[str, list[int]] = {}
        seconds = made = 0.0
        step = scheduler.schedule(0.0)
        while scheduler.has_work:
            began = time.perf_counter()
            step = scheduler.refresh(step, 0.0)
            result = self._worker.run(step)
            following = scheduler.schedule(0.0)
            scheduler.update(step, result, 0.0)
            if all(chunk.phase is ChunkPhase.DECODE for chunk in step.chunks):
                seconds += time.perf_counter() - began
                made += sum(len(brought.token_ids) for brought in result.results)
            for brought in result.results:
                answers.setdefault(brought.request_id, []).extend(brought.token_ids)
            step = following
        return made / seconds, answers, scheduler.stats

    def _scheduler(self, drafter: Drafter | None) -> Scheduler:
        config = SchedulerConfig(
            context=min(self._plan.context, 2048),
            eos_token_ids=frozenset(self._config.eos_token_ids),
            fingerprint="measured",
            max_step_tokens=512,
            max_running=64,
        )
        return Scheduler(config, BlockPool(self._plan.blocks, self._plan.block_size, caching=False), drafter=drafter)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 if guesses changed an answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the embedded one, unless another is named")
    parser.add_argument("--draft-model", help="a smaller model that guesses, besides what the texts themselves tell")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--case", action="append", help="; ".join(CASES))
    options = parser.parse_args(argv)
    gain, alike = DraftGain(options.model, options.threads, options.draft_model), True
    for name in options.case or CASES:
        rates: list[float] = []
        ratios: list[float] = []
        if options.draft_model:
            gain.run(CASES[name], gain.drafter())
        for _ in range(options.rounds):
            plain, answers, _ = gain.run(CASES[name], None)
            guessed, same, stats = gain.run(CASES[name], gain.drafter())
            alike &= answers == same
            rates.append(plain)
            ratios.append(guessed / plain)
        print(
            f"{name:32} {statistics.median(rates):6.0f} tok/s x {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f}-{max(ratios):.2f}); {stats.drafts_accepted} of {stats.drafts_proposed} guesses right, "
            f"{sum(map(len, same.values()))} tokens",
            flush=True,
        )
    print("guesses change no answer" if alike else "GUESSES CHANGED AN ANSWER")
    return int(not alike)


if __name__ == "__main__":
    sys.exit(main())
