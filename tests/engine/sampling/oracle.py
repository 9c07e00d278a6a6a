"""The sampler's slow double: one row, plain Python, written from the definitions.

Every decision comes with its margin (how far it was from falling otherwise), because two correct implementations may
round a border case differently; callers skip rows whose margin is within rounding.
"""

import math
from dataclasses import dataclass

from engine.sampling.draw import uniform
from engine.sequence import Sequence
from scheduler.types.sampling_params import SamplingParams

INF = float("inf")


def edited(row: list[float], sequence: Sequence, eos: list[int]) -> list[float]:
    """Logits after allowed tokens, logit_bias, bad words, min_tokens and the penalties."""
    sampling, tokens, out = sequence.sampling, sequence.tokens, sequence.tokens[sequence.prompt_length :]
    result = list(row)
    for token, bias in sampling.logit_bias.items():
        result[token] += bias
    for token in range(len(row)):
        if sampling.allowed_token_ids and token not in sampling.allowed_token_ids:
            result[token] = -INF
        if any([*tokens, token][-len(word) :] == list(word) for word in sampling.bad_words):
            result[token] = -INF
        if len(out) < sampling.min_tokens and token in (*eos, *sampling.stop_token_ids):
            result[token] = -INF
        if token in tokens:
            penalty = sampling.repetition_penalty
            result[token] = result[token] / penalty if result[token] > 0 else result[token] * penalty
        if token in out:
            result[token] -= sampling.presence_penalty + sampling.frequency_penalty * out.count(token)
    return result


@dataclass
class Truth:
    """Probabilities by token id, and the smallest margin of the decisions behind them."""

    probabilities: list[float]
    margin: float


def distribution(row: list[float], sampling: SamplingParams) -> Truth:
    """Temperature, min_p, top_k, top_p, in this order, by sorting everything."""
    peak = max(row)
    weights = [math.exp((value - peak) / sampling.temperature) for value in row]
    total = sum(weights)
    ranking = sorted(range(len(row)), key=lambda token: (-row[token], token))
    margin = min(abs(weight / sampling.min_p - 1) for weight in weights) if sampling.min_p else INF
    kept = [token for token in ranking if weights[token] >= sampling.min_p]
    if sampling.top_k:
        kept = kept[: sampling.top_k]
    if sampling.top_p < 1.0:
        total = sum(weights[token] for token in kept)
        mass, nucleus = 0.0, []
        for token in kept:
            margin = min(margin, abs(mass - sampling.top_p))
            if mass >= sampling.top_p:
                break
            nucleus.append(token)
            mass += weights[token] / total
        kept = nucleus
    total = sum(weights[token] for token in kept)
    chosen = set(kept)
    return Truth([weights[token] / total if token in chosen else 0.0 for token in range(len(row))], margin)


def next_token(row: list[float], sampling: SamplingParams, position: int) -> tuple[int | None, float]:
    """(token or None where all are masked, margin of the choice), from edited logits."""
    best = max(row)
    if best == -INF:
        return None, INF
    if sampling.temperature == 0.0:
        order = sorted(row, reverse=True)
        return row.index(best), order[0] - order[1]
    truth = distribution(row, sampling)
    number, mass = uniform(sampling.seed, position), 0.0
    margin = truth.margin
    token = None
    for candidate, probability in enumerate(truth.probabilities):
        mass += probability
        if probability:
            margin = min(margin, abs(mass - number)) if mass < 1 - 1e-12 else margin
        if token is None and mass > number:
            token = candidate
    return token, margin


def logprob_and_rank(row: list[float], token: int) -> tuple[float, int]:
    """The same from raw logits."""
    peak = max(row)
    normalizer = peak + math.log(sum(math.exp(value - peak) for value in row))
    return row[token] - normalizer, 1 + sum(value > row[token] for value in row)
