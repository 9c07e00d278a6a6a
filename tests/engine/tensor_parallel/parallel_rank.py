"""One rank of a model split over processes: `python parallel_rank.py RANK SIZE RENDEZVOUS OUT FOLDER..`.

For each model folder: logits of a prompt in chunks over scattered blocks, then greedy tokens of two sequences decoded together.
Also what sums and gathers give on their own. Everything is saved to OUT, for the test to compare.
"""

import sys
from pathlib import Path

import torch

from configs.model.source import resolve_model
from engine.cpu.batch import Batch
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.weights import load_weights
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from engine.tensor_parallel.process_group import ProcessGroup, TorchProcessGroup

BLOCK = 8
TABLES = [[5, 0, 9, 2, 11], [3, 10, 1, 8, 6]]
PROMPTS = [[7, 31, 5, 300, 12, 44, 91, 6, 250, 3, 77, 18, 9], [64, 8, 8, 133, 20]]
TOKENS = 20


def load(folder: Path, group: ProcessGroup) -> Decoder:
    source = resolve_model(str(folder))
    config = read_config(source)
    weights = load_weights(source, config, "auto", rank=group.rank, size=group.size)
    return Decoder(config, weights, group)


def prompt_logits(decoder: Decoder, chunk: int) -> torch.Tensor:
    """Logits of every position of the first prompt, `chunk` tokens per step."""
    pool = KvPool(decoder.config, 12, BLOCK)
    rows = []
    for start in range(0, len(PROMPTS[0]), chunk):
        part = SequenceInput(token_ids=PROMPTS[0][start : start + chunk], start=start, block_table=TABLES[0])
        rows.append(decoder.logits(decoder.forward(Batch.build([part], pool), pool)))
    return torch.cat(rows)


def greedy(decoder: Decoder) -> list[list[int]]:
    """Both prompts in one step, then one token of each per step."""
    pool = KvPool(decoder.config, 12, BLOCK)
    known = [list(prompt) for prompt in PROMPTS]
    done = [0, 0]
    for _ in range(TOKENS):
        inputs = [
            SequenceInput(token_ids=known[index][done[index] :], start=done[index], block_table=TABLES[index])
            for index in range(2)
        ]
        last = torch.tensor([len(inputs[0].token_ids), sum(len(item.token_ids) for item in inputs)]) - 1
        logits = decoder.logits(decoder.forward(Batch.build(inputs, pool), pool)[last])
        for index, token in enumerate(logits.argmax(-1).tolist()):
            done[index] = len(known[index])
            known[index].append(token)
    return known


def exchanged(group: ProcessGroup) -> dict[str, torch.Tensor]:
    """What the calls of a group give on their own, among them a sum that shows its order."""
    return {
        "least": torch.tensor(group.least(7 - group.rank)),
        "sum": group.sum(torch.tensor([1e8, 1.0, -1e8, 0.5])[group.rank % 4].repeat(5)),
        "gathered": group.gather(torch.tensor([[1.0, 2.0], [3.0, 4.0]]) + 10 * group.rank),
    }


def computed(folders: list[Path], group: ProcessGroup) -> dict[str, dict[str, object]]:
    """What this rank gets."""
    results: dict[str, dict[str, object]] = {"": dict(exchanged(group))}
    for folder in folders:
        decoder = load(folder, group)
        results[folder.name] = {
            "logits": [prompt_logits(decoder, chunk) for chunk in (5, 512)],
            "tokens": greedy(decoder),
            "kv_heads": decoder.config.kv_heads,
        }
    return results


def main() -> None:
    rank, size, rendezvous, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    group = TorchProcessGroup(rank, size, rendezvous, torch.device("cpu"), timeout=60)
    torch.save(computed([Path(folder) for folder in sys.argv[5:]], group), out)
    group.close()


if __name__ == "__main__":
    main()
