"""A real embedding model, by our encoder and by plain transformers as sentence-transformers drives it: equal vectors, and how fast.

`python tests/peers/sentence_vectors.py FOLDER [--threads 1]` prints the largest difference of any number, and texts a second of CPU
time of each on the same texts, in alternation. Transformers gets them sorted by length, 32 at a time, padded.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from random import Random

import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoTokenizer

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.device import Device
from engine.encoder.backend import EncoderBackend
from engine.models.registry import read_description
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step

WORDS = "the of and river house green blue stone water light over under quickly running seven".split()  # noqa: SIM905
BATCH, ROUNDS = 32, 3


class Ours:
    """The encoder's worker, with steps as the scheduler fills them: texts in their order, up to the budget."""

    def __init__(self, folder: str, threads: int) -> None:
        source = resolve_model(folder)
        startup = Startup(
            Settings(device="cpu", threads=threads),
            source,
            read_description(source),
            lambda name: nullcontext(),
            lambda do: do(),
        )
        backend = EncoderBackend(startup, Device("cpu", "to be measured"))
        self._worker, self._limits = backend.load(backend.plan()), backend.limits

    def vectors(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        found: list[list[float]] = []
        step: list[Sequence[int]] = []
        for ids in [*texts, None]:
            full = ids is None or sum(map(len, step)) + len(ids) > self._limits.tokens
            if step and (full or len(step) == self._limits.sequences):
                found += self._run(step)
                step = []
            step += [] if ids is None else [ids]
        return torch.tensor(found)

    def _run(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        asked = SamplingParams(max_tokens=0)
        new = [
            SequenceInit(request_id=str(i), prompt_ids=list(ids), sampling=asked, produces=OutputKind.VECTOR)
            for i, ids in enumerate(texts)
        ]
        chunks = [
            Chunk(
                request_id=each.request_id,
                start=0,
                length=len(each.prompt_ids),
                block_table=[0],
                phase=ChunkPhase.PREFILL,
            )
            for each in new
        ]
        step = Step(step_id=0, chunks=chunks, new=new, retired=[each.request_id for each in new])
        return [result.pooled.values for result in self._worker.run(step).results]


class Theirs:
    """`AutoModel`, the mean over real tokens, and length 1."""

    def __init__(self, folder: str) -> None:
        self._model = AutoModel.from_pretrained(folder).eval()
        self._pad = self._model.config.pad_token_id

    @torch.inference_mode()
    def vectors(self, texts: Sequence[Sequence[int]]) -> torch.Tensor:
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        found = torch.empty(len(texts), self._model.config.hidden_size)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            longest = len(texts[places[0]])
            ids = torch.tensor([[*texts[place], *[self._pad] * (longest - len(texts[place]))] for place in places])
            mask = torch.tensor([[1] * len(texts[place]) + [0] * (longest - len(texts[place])) for place in places])
            states, real = self._model(ids, attention_mask=mask).last_hidden_state, mask[..., None].float()
            found[places] = F.normalize((states * real).sum(1) / real.sum(1), dim=1)
        return found


def speed(work: Callable[[], object], texts: int) -> float:
    """Texts a second of this process's CPU time, which other work on the machine does not change much."""
    began = time.process_time()
    work()
    return texts / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--texts", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, theirs, rng = Ours(options.folder, options.threads), Theirs(options.folder), Random(0)
    tokenizer = AutoTokenizer.from_pretrained(options.folder)
    for name, lengths in (("equal lengths", (24, 24)), ("mixed lengths", (3, 120)), ("long texts", (200, 240))):
        words = [" ".join(rng.choices(WORDS, k=rng.randint(*lengths))) for _ in range(options.texts)]
        ids = tokenizer(words, truncation=True, max_length=256)["input_ids"]
        difference = (ours.vectors(ids) - theirs.vectors(ids)).abs().max().item()
        rounds = [
            [speed(lambda: each.vectors(ids), len(ids)) for each in (ours, theirs)]  # noqa: B023 - called at once
            for _ in range(ROUNDS)
        ]
        best = [max(column) for column in zip(*rounds, strict=True)]
        print(
            f"{name} ({sum(map(len, ids)) / len(ids):.0f} tokens): largest difference {difference:.1e}; "
            f"{best[0]:.0f} texts/s, transformers {best[1]:.0f}, ratio {best[0] / best[1]:.2f}"
        )


if __name__ == "__main__":
    main()
