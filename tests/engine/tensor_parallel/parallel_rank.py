"""One rank of a model split over processes: `python parallel_rank.py RANK SIZE RENDEZVOUS OUT FOLDER..`.

For each model folder: logits of a prompt in chunks over scattered blocks, then greedy tokens of two sequences decoded together.
Also what vocabulary parts and sums give on their own. Everything is saved to OUT, for the test to compare.
"""

import sys
from pathlib import Path

import torch

from configs.model.read import read_config
from configs.model.source import resolve_model
from engine.cpu.batch import Batch, SequenceInput
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.loading import load_weights
from engine.tensor_parallel.decoder import ParallelDecoder
from engine.tensor_parallel.shards import Joined, Ranks, VocabularyEmbedding, VocabularyHead

BLOCK = 8
TABLES = [[5, 0, 9, 2, 11], [3, 10, 1, 8, 6]]
PROMPTS = [[7, 31, 5, 300, 12, 44, 91, 6, 250, 3, 77, 18, 9], [64, 8, 8, 133, 20]]
TOKENS = 20
VOCABULARY = 7  # odd: the last rank's part is filled up


def load(folder: Path, ranks: Ranks) -> Decoder:
    source = resolve_model(str(folder))
    config = read_config(source)
    return ParallelDecoder(config, load_weights(source, config, "auto"), ranks)


def prompt_logits(decoder: Decoder, chunk: int) -> torch.Tensor:
    """Of every position of the first prompt, `chunk` tokens a step."""
    pool = KvPool(decoder.config, 12, BLOCK)
    rows = []
    for start in range(0, len(PROMPTS[0]), chunk):
        part = SequenceInput(token_ids=PROMPTS[0][start : start + chunk], start=start, block_table=TABLES[0])
        rows.append(decoder.logits(decoder.forward(Batch.build([part], pool), pool)))
    return torch.cat(rows)


def greedy(decoder: Decoder) -> list[list[int]]:
    """Both prompts in one step, then a token of each a step."""
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


def vocabulary(ranks: Ranks) -> dict[str, torch.Tensor]:
    """A table of 7 rows of which each rank has a part, as `split_weights` cuts it; and a sum whose order shows."""
    table = torch.arange(VOCABULARY * 3.0).view(VOCABULARY, 3)
    width = -(-VOCABULARY // ranks.size)
    part = torch.zeros(width, 3)
    mine = table[ranks.rank * width : (ranks.rank + 1) * width]
    part[: len(mine)] = mine
    return {
        "embedded": VocabularyEmbedding(part, ranks)(torch.arange(VOCABULARY)),
        "scores": VocabularyHead(part, VOCABULARY, ranks)(torch.eye(3)),
        "least": torch.tensor(ranks.least(7 - ranks.rank)),
        "sum": ranks.sum(torch.tensor([1e8, 1.0, -1e8, 0.5])[ranks.rank % 4].repeat(5)),
    }


def computed(folders: list[Path], ranks: Ranks) -> dict[str, dict[str, object]]:
    """What this rank gets."""
    results: dict[str, dict[str, object]] = {"": dict(vocabulary(ranks))}
    for folder in folders:
        decoder = load(folder, ranks)
        results[folder.name] = {
            "logits": [prompt_logits(decoder, chunk) for chunk in (5, 512)],
            "tokens": greedy(decoder),
            "kv_heads": decoder.config.kv_heads,
        }
    return results


def main() -> None:
    rank, size, rendezvous, out = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    ranks = Joined(rank, size, rendezvous, torch.device("cpu"), timeout=60)
    torch.save(computed([Path(folder) for folder in sys.argv[5:]], ranks), out)
    ranks.close()


if __name__ == "__main__":
    main()
