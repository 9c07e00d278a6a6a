"""One rank of a GPU model split over processes: `python rank_process.py RANK SIZE RENDEZVOUS OUT FOLDER..`, kernels interpreted.

For each model: logits of a prompt in two chunks over scattered blocks, then greedy tokens of two sequences decoded together.
"""

import os
import sys
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # before triton is imported

import torch

from engine.sequence_input import SequenceInput
from engine.tensor_parallel.process_group import ProcessGroup, SingleProcess, TorchProcessGroup
from tests.engine.gpu.cases import CPU, chunk, gpu_model
from tests.interpreter import quicken

TABLES = [[5, 0, 9], [3, 10, 1]]
PROMPTS = [[7, 31, 5, 300, 12, 44, 91, 6, 250, 3, 77, 18, 9, 40, 41, 42, 8], [64, 8, 8]]
TOKENS = 6


def results(path: str, form: str, ranks: ProcessGroup) -> dict[str, object]:
    """What one rank, or a process on its own, computes."""
    model = gpu_model(path, form, blocks=12, ranks=ranks)
    ids, rows = PROMPTS[0], []
    for start, stop in ((0, 12), (12, len(ids))):
        rows.append(model.logits(model.forward([chunk(ids, start, stop, TABLES[0])])))
    known, done = [list(prompt) for prompt in PROMPTS], [0, 0]
    for _ in range(TOKENS):
        inputs = [
            SequenceInput(token_ids=one[begin:], start=begin, block_table=table, wanted=1)
            for one, begin, table in zip(known, done, TABLES, strict=True)
        ]
        for index, token in enumerate(model.logits(model.forward(inputs)).argmax(-1).tolist()):
            done[index] = len(known[index])
            known[index].append(token)
    return {"logits": torch.cat(rows), "tokens": known, "kv_heads": model.config.kv_heads}


def alone(path: str, form: str) -> dict[str, object]:
    """The same, in one process."""
    return results(path, form, SingleProcess())


def main() -> None:
    """Join the group, compute every model, save."""
    rank, size, rendezvous, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    quicken()
    ranks = TorchProcessGroup(rank, size, rendezvous, CPU, timeout=60)
    models = [argument.split("=") for argument in sys.argv[5:]]
    torch.save({Path(path).name: results(path, form, ranks) for form, path in models}, out)
    ranks.close()


if __name__ == "__main__":
    main()
