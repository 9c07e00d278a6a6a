"""What a grammar costs a step on a CPU, and what its forced tokens gain: no server, no sockets, one worker.

    python -m tests.engine.grammar.measure [--model PATH] [--threads N]

Sequences decode side by side, freely, then with a schema, then with what it forces computed as one chunk; the answers of the last
two have to be the same. Then, for 64 sequences, how long their masks take (made and applied), beside the step they are part of.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from llguidance import LLMatcher

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.cpu.backend import CpuBackend
from engine.ipc.vocabulary import TokenSpellings
from engine.models.registry import read_config
from engine.sampling.grammar_mask import GrammarMask
from loadtest.bench.structured import QUESTION, SCHEMA
from scheduler.drafting import Drafter
from scheduler.kv.block_pool import BlockPool
from scheduler.scheduler import Scheduler
from scheduler.types.config import SchedulerConfig
from scheduler.types.messages import AddRequest
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import ChunkPhase
from server.structured.grammar import schema_source
from server.text import load_tokenizer

_COMPACT = {"whitespace_flexible": False, "whitespace_pattern": None}
GRAMMARS = {
    "text": "",
    "JSON": LLMatcher.grammar_from_json_schema(schema_source(SCHEMA)),
    "JSON without spaces": LLMatcher.grammar_from_json_schema(schema_source(SCHEMA, _COMPACT)),
}


class GrammarCost:
    """One model on this CPU."""

    def __init__(self, model: str | None, threads: int | None, folder: Path) -> None:
        source = resolve_model(model)
        self._config = read_config(source)
        settings = Settings(device="cpu", kv_blocks=1024, threads=threads)
        startup = Startup(settings, source, self._config, lambda name: nullcontext(), lambda work: work())
        self.backend = CpuBackend(startup, "measured")
        self._plan = self.backend.plan()
        self._worker = self.backend.load(self._plan)
        tokenizer = load_tokenizer(source.path)
        size = self._config.vocab_size
        self._vocabulary = folder / "vocabulary"
        special = sorted(token for token in tokenizer.special_ids if token < size)
        TokenSpellings([tokenizer.token_bytes(token) for token in range(size)], special).write(self._vocabulary)
        self._prompt = tokenizer.encode(f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
        self._runs = 0

    def run(
        self, case: str, sequences: int, tokens: int, drafter: Drafter | None = None
    ) -> tuple[float, list[list[int]]]:
        """Seconds of the steps that only decode, for each token that they bring, and all answers."""
        scheduler = self._scheduler(drafter)
        self._runs += 1
        for i in range(sequences):
            grammar = GRAMMARS[case]
            vocabulary = str(self._vocabulary) if grammar else ""
            sampling = SamplingParams(
                max_tokens=tokens, temperature=0.7, seed=i, ignore_eos=True, grammar=grammar, vocabulary=vocabulary
            )
            name = f"{self._runs} {i}"
            scheduler.add(AddRequest(request_id=name, prompt_ids=[*self._prompt], sampling=sampling), 0.0)
        answers: dict[str, list[int]] = {}
        seconds = made = 0.0
        self.steps: list[float] = []
        step = scheduler.schedule(0.0)
        while scheduler.has_work:
            began = time.perf_counter()
            step = scheduler.refresh(step, 0.0)
            result = self._worker.run(step)
            following = scheduler.schedule(0.0)
            scheduler.update(step, result, 0.0)
            for brought in result.results:
                answers.setdefault(brought.request_id, []).extend(brought.token_ids)
            if all(chunk.phase is ChunkPhase.DECODE for chunk in step.chunks):
                self.steps.append(time.perf_counter() - began)
                seconds += self.steps[-1]
                made += sum(len(brought.token_ids) for brought in result.results)
            step = following
        return seconds / made, list(answers.values())

    def _scheduler(self, drafter: Drafter | None) -> Scheduler:
        config = SchedulerConfig(
            context=min(self._plan.context, 1024),
            eos_token_ids=frozenset(self._config.eos_token_ids),
            fingerprint="measured",
            max_step_tokens=512,
            max_running=64,
        )
        pool = BlockPool(self._plan.blocks, self._plan.block_size, caching=False)
        return Scheduler(config, pool, drafter=drafter)


def masks_of(cost: GrammarCost, sequences: int, tokens: int) -> list[float]:
    """Seconds that the masks of each step took."""
    taken: list[float] = []
    plain = GrammarMask.apply

    def timed(self: GrammarMask, *arguments: Any) -> None:
        began = time.perf_counter()
        plain(self, *arguments)
        taken.append(time.perf_counter() - began)

    GrammarMask.apply = timed  # type: ignore[method-assign]
    try:
        cost.run("JSON", sequences, tokens)
    finally:
        GrammarMask.apply = plain  # type: ignore[method-assign]
    return taken


def percentile(values: Sequence[float], share: float) -> float:
    """The value that this share of all is not above."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print. Returns 1 if forced tokens changed an answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="the embedded one, unless another is named")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, default=96, help="of each answer [%(default)s]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--masks", type=int, default=64, help="sequences whose masks are timed [%(default)s]")
    options = parser.parse_args(argv)
    alike = True
    with tempfile.TemporaryDirectory() as folder:
        cost = GrammarCost(options.model, options.threads, Path(folder))
        cost.run("JSON", 1, 4)
        for streams in options.streams:
            found: dict[str, list[float]] = {}
            for _ in range(options.rounds):
                text, _ = cost.run("text", streams, options.tokens)
                for case in ("JSON", "JSON without spaces"):
                    plain, answers = cost.run(case, streams, options.tokens)
                    forced, same = cost.run(case, streams, options.tokens, cost.backend.drafter)
                    alike &= answers == same
                    found.setdefault(f"{case}, a step each", []).append(text / plain)
                    found.setdefault(f"{case}, forced tokens", []).append(text / forced)
            for case, ratios in found.items():
                print(f"{streams} streams, {case:36} x {statistics.median(ratios):.2f} of free text", flush=True)
        masks = masks_of(cost, options.masks, min(options.tokens, 48))
        step = statistics.median(cost.steps)
        for share in (0.5, 0.99):
            taken = percentile(masks, share)
            print(
                f"masks of {options.masks} rows, p{share * 100:g}: {1e3 * taken:.2f} ms, {100 * taken / step:.1f} % of a step"
            )
    print("forced tokens change no answer" if alike else "FORCED TOKENS CHANGED AN ANSWER")
    return int(not alike)


if __name__ == "__main__":
    sys.exit(main())
