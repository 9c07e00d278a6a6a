"""How often a draft model's guesses are right, by task and temperature, beside what rejection sampling would accept, and lookup.

    python -m tests.engine.drafting.acceptance --model PATH --draft-model PATH [--tokens N]

Along a text that the model draws, both models' distributions p and q of each next token are computed. Printed, as means:

- coupled: the draft, drawing by the request's own number, draws what the model draws (temperature 0: both likeliest are one);
- 1 - TV: the sum of min(p, q), which rejection sampling accepts on average, and no coupling exceeds; and coupled over that;
- lookup: where the newest tokens (two or more) occurred before, what followed there is the next token; and at how many positions.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.backend import import_torch
from engine.cpu.formats import choose_arithmetic
from engine.cpu.loading import PoolSize, load_model
from engine.cpu.model import Model
from engine.drafting.draft_files import check_same_tokens
from engine.drafting.history import TokenHistory
from engine.models.registry import read_config
from engine.sampling import draw
from engine.sequence_input import SequenceInput
from server.text import load_tokenizer
from tests.engine.drafting.measure import TASKS

TEMPERATURES = (0.0, 0.8, 1.0)
BLOCKS, BLOCK = 40, 32


class Texts:
    """A model's texts, and what another says along them.

    Args:
        model: draws them.
        draft: is asked for the same tokens.
        width: how many ids both know.
    """

    def __init__(self, model: Model, draft: Model, width: int) -> None:
        self._model, self._draft, self._width = model, draft, width

    @torch.inference_mode()
    def drawn(self, prompt: list[int], temperature: float, tokens: int) -> tuple[list[int], Tensor]:
        """The prompt and an answer of so many tokens with seed 0, and the scores that it was drawn by: fp32 [tokens, width]."""
        ids, start, scores = list(prompt), 0, []
        for _ in range(tokens):
            scores.append(self._scores(self._model, ids[start:], start, 1))
            start = len(ids)
            ids.append(int(_drawn(scores[-1], temperature, range(start, start + 1))))
        return ids, torch.cat(scores)

    @torch.inference_mode()
    def accepted(self, ids: list[int], scores: Tensor, temperature: float) -> tuple[float, float]:
        """Along a text with these scores for its last tokens: how often coupled draws agree, and the mean of 1 - TV."""
        places = range(len(ids) - len(scores), len(ids))
        others = self._scores(self._draft, ids[:-1], 0, len(scores))
        agreed = _drawn(scores, temperature, places) == _drawn(others, temperature, places)
        shared = torch.minimum(_weights(scores, temperature), _weights(others, temperature)).sum(-1)
        return float(agreed.float().mean()), float(shared.mean())

    def _scores(self, model: Model, ids: list[int], start: int, rows: int) -> Tensor:
        """After the last so many of these tokens: fp32 [rows, width]."""
        chunk = SequenceInput(token_ids=ids, start=start, block_table=list(range(BLOCKS)), wanted=rows)
        return model.logits(model.forward([chunk]))[:, : self._width].clone()


def _weights(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities; all on the likeliest at temperature 0."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[1]).float()
    return (logits / temperature).softmax(-1)


def _drawn(logits: Tensor, temperature: float, places: range) -> Tensor:
    """What each row draws at its place."""
    if temperature == 0:
        return logits.argmax(-1)
    numbers = torch.tensor([draw.uniform(0, place) for place in places], dtype=torch.float64)
    return draw.invert(_weights(logits, temperature), numbers)


def looked_up(ids: list[int], prompt_length: int) -> tuple[float, float]:
    """Of the positions of an answer, where lookup has a guess; and of these, where it is right."""
    history, found, right = TokenHistory(), 0, 0
    for place in range(prompt_length, len(ids)):
        history.follow(ids[:place])
        length, following = history.look(1)
        found += bool(length)
        right += bool(length) and following[0] == ids[place]
    return found / (len(ids) - prompt_length), right / max(1, found)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--draft-model", required=True)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--task", action="append", choices=list(TASKS))
    options = parser.parse_args(argv)
    import_torch(None)
    sources = [resolve_model(options.model), resolve_model(options.draft_model)]
    check_same_tokens(*sources)
    configs = [read_config(source) for source in sources]
    models = [
        load_model(
            source, config, choose_arithmetic(Settings(), config), "auto", PoolSize(BLOCKS, BLOCK, BLOCKS * BLOCK)
        )
        for source, config in zip(sources, configs, strict=True)
    ]
    texts, encode = (
        Texts(models[0], models[1], min(c.vocab_size for c in configs)),
        load_tokenizer(sources[0].path).encode,
    )
    print("task      temperature  coupled  1 - TV  ratio  lookup right  of positions")
    for task in options.task or TASKS:
        prompt = encode(f"<|im_start|>user\n{TASKS[task]}<|im_end|>\n<|im_start|>assistant\n")
        for temperature in TEMPERATURES:
            ids, scores = texts.drawn(prompt, temperature, options.tokens)
            coupled, shared = texts.accepted(ids, scores, temperature)
            part, right = looked_up(ids, len(prompt))
            said = f"{coupled:7.3f}  {shared:6.3f}  {coupled / shared:5.3f}  {right:12.3f}  {part:12.3f}"
            print(f"{task:9} {temperature:11.1f}  {said}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
