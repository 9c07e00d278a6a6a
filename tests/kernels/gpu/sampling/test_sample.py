"""Sampling against its definition: the kept sets at their borders, the draws, penalties, health, independence of the batch."""

import math
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from scipy import stats

from kernels.gpu.sampling.gumbel import reference_gumbel, reference_words
from kernels.gpu.sampling.logits_scan import BLOCK
from kernels.gpu.sampling.penalties import count_tokens, reference_count_tokens
from kernels.gpu.sampling.sample import (
    ALL_MASKED,
    NOT_FINITE,
    BatchSettings,
    RowSettings,
    key_of,
    reference_kept,
    reference_sample,
    sample,
)

CPU = torch.device("cpu")
SIGNIFICANCE = 1e-4  # draws are fixed by their seeds: a pass stays a pass


def drawn(rows, vocab, seed=0, scale=3.0):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * scale


def settings(*rows):
    return BatchSettings.of(rows, CPU)


def gumbel_noise(seed, positions, vocab):
    """Gumbel noise of every token at positions 0 .. `positions` - 1: [positions, vocab]."""
    counters = torch.zeros(positions, -(-vocab // 4), 4, dtype=torch.int64)
    counters[..., 0] = torch.arange(counters.shape[1])
    counters[..., 1] = torch.arange(positions).unsqueeze(1)
    words = reference_words(key_of(seed), counters.view(-1, 4)).view(positions, -1)[:, :vocab]
    return -torch.log(-torch.log1p(-((words.double() + 0.5) / 2**32)))


def weights_of(row, asked):
    return (row - row.max()).double() / asked.temperature


def kept_of(row, asked):
    """(kept tokens, best first; the next token of the ranking or None)."""
    logs = weights_of(row, asked)
    log_min_p = math.log(asked.min_p) if asked.min_p else -math.inf
    kept = reference_kept(row, logs, np.float32(log_min_p).item(), asked.top_k, np.float32(asked.top_p).item())
    order = row.sort(descending=True, stable=True).indices
    n = int(kept.sum())
    following = int(order[n]) if n < len(row) and row[order[n]] > -math.inf else None
    return order[:n], following


def certain(row, asked):
    """Whether no border lies within the rounding of fp32 masses."""
    if asked.min_p and bool(((weights_of(row, asked) - math.log(asked.min_p)).abs() < 1e-5).any()):
        return False
    if asked.top_p == 1:
        return True
    kept, _ = kept_of(row, RowSettings(temperature=asked.temperature, min_p=asked.min_p, top_k=asked.top_k))
    mass = weights_of(row, asked)[kept].softmax(0).cumsum(0)
    return bool(((mass - asked.top_p).abs() > 2e-6).all())


def probes(row, asked, noise):
    """(position, expected token) pairs at which a set that lacks its last token, or has one too many, draws another token."""
    kept, following = kept_of(row, asked)
    scores = weights_of(row, asked) + noise
    winners = kept[scores[:, kept].argmax(dim=1)]
    found = (winners == kept[-1]).nonzero()[:1, 0].tolist()
    if following is not None:
        intruded = scores[:, following] > scores[:, kept].max(dim=1).values
        found += intruded.nonzero()[:1, 0].tolist()
    return [(position, int(winners[position])) for position in found]


def check_borders(cases, noise):
    """Probe all cases in one call; returns how many probes there were."""
    rows, asked, expected = [], [], []
    for row, options in cases:
        if certain(row, RowSettings(**options)):
            for position, token in probes(row, RowSettings(**options), noise):
                rows.append(row)
                asked.append(RowSettings(seed=1, position=position, **options))
                expected.append(token)
    assert sample(torch.stack(rows), settings(*asked)).tolist() == expected
    return len(expected)


LIMITS = [
    {"top_k": 1}, {"top_k": 9}, {"top_k": 64}, {"top_k": 299}, {"top_p": 0.1}, {"top_p": 0.7}, {"top_p": 0.97}, {"min_p": 0.02},
    {"min_p": 0.3}, {"top_k": 30, "top_p": 0.6}, {"min_p": 0.05, "top_p": 0.8}, {"min_p": 0.01, "top_k": 12, "top_p": 0.9},
    {"top_k": 80, "min_p": 0.2}, {"top_k": 400, "top_p": 0.5},
]  # fmt: skip


@pytest.fixture(scope="module")
def narrow_noise():
    return gumbel_noise(1, 4000, 300)


@pytest.fixture(scope="module")
def wide_noise():
    return gumbel_noise(1, 400, 2 * BLOCK + 809)


@pytest.mark.parametrize("kind", ["plain", "ties", "masked", "negative"])
def test_borders_of_the_kept_set(kind, narrow_noise):
    cases = []
    for index, options in enumerate(LIMITS):
        row = drawn(1, 300, index, 1.5)[0]
        if kind == "ties":
            row = row.round()  # -0.0 among them, which equals 0.0
        if kind == "masked":
            row[1:][torch.rand(299, generator=torch.Generator().manual_seed(index)) < 0.8] = -math.inf
        if kind == "negative":
            row -= 40.0
        cases.append((row, {"temperature": 0.7 + index % 3, **options}))
    assert check_borders(cases, narrow_noise) > len(cases)


@pytest.mark.parametrize("ties", [False, True])
def test_borders_over_tiles_and_chunks(ties, wide_noise):
    """Several tiles, and lists longer than a chunk: flat rows keep thousands."""
    vocab = wide_noise.shape[1]
    cases = []
    for index, options in enumerate(
        [
            {"top_k": 3},
            {"top_k": 140},
            {"top_k": 5000},
            {"top_p": 0.02},
            {"top_p": 0.6},
            {"min_p": 0.5},
            {"top_k": 4000, "top_p": 0.4},
        ]
    ):
        row = drawn(1, vocab, index, 1.0)[0]
        cases.append((row.round() if ties else row, {"temperature": 1.3, **options}))
    assert check_borders(cases, wide_noise) >= 6


def test_a_tie_is_cut_by_id_across_tiles():
    """All equal: of 9001 tokens exactly the first k stay, so with k = 4100 nothing above is ever drawn, and what lies below is."""
    vocab = 2 * BLOCK + 809
    rows = torch.zeros(5, vocab)
    tokens = sample(rows, settings(*(RowSettings(top_k=4100, seed=9, position=i) for i in range(5))))
    expected = [int(reference_gumbel(key_of(9), i, vocab)[:4100].argmax()) for i in range(5)]
    assert tokens.tolist() == expected


@pytest.mark.parametrize(
    "options", [{"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 0.0}, {"temperature": 1e-30}]
)
def test_what_leaves_one_token_is_greedy(options):
    logits = drawn(3, 500)
    tokens = sample(logits, settings(*[RowSettings(**options)] * 3))
    assert torch.equal(tokens, logits.argmax(dim=-1))


def test_unlimited_draws_are_gumbel_max_over_all(wide_noise):
    vocab = wide_noise.shape[1]
    for scale, temperature in [(3.0, 1.0), (3.0, 0.4), (0.01, 2.0)]:
        row = drawn(1, vocab, 3, scale)[0]
        scores = wide_noise[:6] + (row - row.max()).double() / temperature
        rows = [RowSettings(seed=1, position=i, temperature=temperature) for i in range(6)]
        assert sample(row.repeat(6, 1), settings(*rows)).tolist() == scores.argmax(dim=1).tolist()


ROW = torch.from_numpy(np.random.default_rng(0).normal(0, 1.5, 50).astype(np.float32))
COMBINATIONS = [
    {}, {"temperature": 0.6}, {"temperature": 1.8}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.08}, {"top_k": 12, "top_p": 0.7},
    {"temperature": 1.5, "min_p": 0.1, "top_k": 20, "top_p": 0.9},
]  # fmt: skip


def shares(row, options):
    """The defined distribution, written out: softmax over temperature, min_p, top_k, top_p, each on what the last one left."""
    probabilities = (row.double() / options.get("temperature", 1.0)).softmax(0)
    ranking = sorted(range(len(row)), key=lambda token: (-float(row[token]), token))
    ranking = [t for t in ranking if probabilities[t] >= options.get("min_p", 0.0) * probabilities.max()]
    ranking = ranking[: options.get("top_k", len(row))]
    total, mass, nucleus = sum(probabilities[t] for t in ranking), 0.0, []
    for token in ranking:
        if mass >= options.get("top_p", 2.0) * total:
            break
        nucleus.append(token)
        mass += probabilities[token]
    result = torch.zeros(len(row), dtype=torch.float64)
    result[nucleus] = probabilities[nucleus] / mass
    return result.numpy()


def p_value(tokens, probabilities):
    """Chi-square of draws; zero where something impossible was drawn. Rare tokens share one bin."""
    counts = Counter(tokens)
    if any(probabilities[token] == 0 for token in counts):
        return 0.0
    common = [t for t, p in enumerate(probabilities) if p * len(tokens) >= 5]
    seen = [counts[t] for t in common] + [len(tokens) - sum(counts[t] for t in common)]
    expected = [probabilities[t] * len(tokens) for t in common]
    expected.append(len(tokens) - sum(expected))
    if expected[-1] < 5:
        seen[-2:], expected[-2:] = [sum(seen[-2:])], [sum(expected[-2:])]
    return stats.chisquare(seen, expected).pvalue if len(seen) > 1 else 1.0


@pytest.fixture(scope="module")
def many_noise():
    return torch.cat([gumbel_noise(seed, 200, len(ROW)) for seed in range(50)])


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_the_drawn_distribution_is_the_defined_one(options, many_noise):
    """10000 draws from the reference's numbers, 200 positions of each of 50 seeds; the kernel repeats some of them exactly."""
    asked = RowSettings(**options)
    kept, _ = kept_of(ROW, asked)
    scores = many_noise[:, kept] + weights_of(ROW, asked)[kept]
    tokens = kept[scores.argmax(dim=1)].tolist()
    assert p_value(tokens, shares(ROW, options)) > SIGNIFICANCE
    rows = [RowSettings(seed=i // 4, position=67 * (i % 4) % 200, **options) for i in range(16)]
    expected = [tokens[200 * row.seed + row.position] for row in rows]
    assert sample(ROW.repeat(16, 1), settings(*rows)).tolist() == expected
    assert reference_sample(ROW.repeat(16, 1), settings(*rows)).tolist() == expected


def test_the_kernels_own_draws():
    row = torch.tensor([2.0, 0.0, 1.0, -1.0, 1.5, 0.5])
    tokens = sample(row.repeat(300, 1), settings(*(RowSettings(seed=i) for i in range(300)))).tolist()
    assert p_value(tokens, shares(row, {})) > SIGNIFICANCE
    assert p_value(tokens, shares(row, {"temperature": 0.6})) < SIGNIFICANCE
    assert p_value(tokens, shares(row, {"top_k": 4})) < SIGNIFICANCE


MIXED = [
    RowSettings(temperature=0.0),
    RowSettings(seed=3, position=8),
    RowSettings(seed=-5, top_k=20, position=2),
    RowSettings(seed=2**70, top_p=0.9, temperature=0.8, position=1000),
    RowSettings(seed=3, position=8, min_p=0.1, repetition=1.3, slot=2),
    RowSettings(temperature=0.0, presence=2.0, frequency=0.5, slot=0),
    RowSettings(seed=4, repetition=0.8, presence=-1.0, slot=3),
]


def counted(vocab):
    """Counts of 5 slots, the last of which no row may read: what stands there would change everything."""
    generator = torch.Generator().manual_seed(4)
    counts = torch.zeros(5, vocab, dtype=torch.int32)
    slots = torch.randint(-1, 4, (900,), generator=generator)
    tokens = torch.randint(-2, min(vocab, 60), (900,), generator=generator)
    other = torch.zeros_like(counts)
    for output in (False, True):
        part = slice(0, 300) if not output else slice(300, 900)
        count_tokens(counts, slots[part], tokens[part], output=output)
        reference_count_tokens(other, slots[part], tokens[part], output=output)
    assert torch.equal(counts, other)
    assert counts[:4].max() > 9
    counts[4] = 2**30
    return counts


@pytest.mark.parametrize("vocab", [61, 1500, BLOCK + 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mixed_batch(vocab, dtype):
    logits = drawn(len(MIXED), vocab, vocab).to(dtype)
    counts = counted(vocab)
    before = logits.clone()
    tokens = sample(logits, settings(*MIXED), counts)
    assert tokens.tolist() == reference_sample(logits, settings(*MIXED), counts).tolist()
    assert torch.equal(logits, before)
    for index, row in enumerate(MIXED):
        assert sample(logits[index : index + 1], settings(row), counts).tolist() == [int(tokens[index])]
    backwards = sample(logits.flip(0), settings(*reversed(MIXED)), counts)
    assert torch.equal(backwards.flip(0), tokens)


def test_penalties_decide():
    """By hand: 3.0 twice in the output and once in the prompt."""
    logits = torch.tensor([[3.0, 2.0, -1.0, -1.5]]).repeat(6, 1)
    counts = torch.zeros(2, 4, dtype=torch.int32)
    count_tokens(counts, torch.tensor([1, 1]), torch.tensor([0, 0]), output=False)
    count_tokens(counts, torch.tensor([1, 1]), torch.tensor([0, 0]), output=True)
    rows = [
        {"repetition": 1.4},  # 3 / 1.4 = 2.14
        {"repetition": 1.6},  # 1.875
        {"presence": 0.9},
        {"presence": 1.1},
        {"frequency": 0.49},
        {"frequency": 0.51},
    ]
    asked = settings(*(RowSettings(temperature=0, slot=1, **row) for row in rows))
    assert sample(logits, asked, counts).tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(
    "row", [RowSettings(), RowSettings(temperature=0), RowSettings(top_p=0.9), RowSettings(top_k=3)], ids=str
)
def test_health(row):
    """A sick row gets a code, its neighbours their tokens."""
    vocab = BLOCK + 70
    logits = drawn(5, vocab)
    healthy = sample(logits, settings(*[row] * 5)).tolist()
    logits[0, BLOCK + 60] = math.nan
    logits[1, 5] = math.inf
    logits[2] = -math.inf
    logits[3] = -math.inf
    logits[3, BLOCK + 1] = math.nan
    codes = [NOT_FINITE, NOT_FINITE, ALL_MASKED, NOT_FINITE]
    assert sample(logits, settings(*[row] * 5)).tolist() == [*codes, healthy[4]]


def test_one_token_left_by_masks():
    logits = torch.full((4, BLOCK + 70), -math.inf)
    logits[:, BLOCK + 9] = -1e30
    rows = [RowSettings(), RowSettings(temperature=0), RowSettings(top_k=5, seed=3), RowSettings(top_p=0.5)]
    assert sample(logits, settings(*rows)).tolist() == [BLOCK + 9] * 4


# numpy warns where a GPU's arithmetic silently gives the infinity that is meant.
@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_extreme_logits_and_temperatures():
    logits = torch.tensor([[3e38, -3e38, 2.9e38, 0.0]]).repeat(4, 1)
    rows = [
        RowSettings(),
        RowSettings(top_p=0.9),
        RowSettings(temperature=1e-38),
        RowSettings(temperature=1e-38, top_k=2),
    ]
    assert sample(logits, settings(*rows)).tolist() == [0] * 4


def test_rows_of_a_wider_matrix_and_the_position_on_the_device():
    wide = torch.full((3, 400), math.nan)
    wide[:, :200] = drawn(3, 200)
    asked = settings(*(RowSettings(seed=i, position=5) for i in range(3)))
    first = sample(wide[:, :200], asked)
    asked.advance()
    later = settings(*(RowSettings(seed=i, position=6) for i in range(3)))
    assert sample(wide[:, :200], asked).tolist() == sample(drawn(3, 200), later).tolist()
    assert (
        first.tolist()
        == reference_sample(drawn(3, 200), settings(*(RowSettings(seed=i, position=5) for i in range(3)))).tolist()
    )
    assert len(sample(wide[:0, :200], settings())) == 0


def test_misuse_says_how():
    logits = drawn(2, 20)
    with pytest.raises(ValueError, match="one row of settings"):
        sample(logits, settings(RowSettings()))
    with pytest.raises(ValueError, match="contiguous columns"):
        sample(logits.t(), settings(*[RowSettings()] * 20))
    with pytest.raises(ValueError, match="pass counts"):
        sample(logits, settings(*[RowSettings(presence=1.0)] * 2))
    with pytest.raises(ValueError, match="pass counts"):
        sample(logits, settings(*[RowSettings(presence=1.0)] * 2), torch.zeros(2, 19, dtype=torch.int32))


def test_builds_for_a_gpu_without_spills():
    """One build of each kernel here, in a process of its own: this one interprets."""
    code = (
        "from kernels.gpu.sampling import logits_scan, penalties, token_logprobs, top_k_top_p\n"
        "from kernels.gpu.build import build\n"
        "for module in (penalties, logits_scan, token_logprobs, top_k_top_p):\n"
        "    for variant in {variant.kernel: variant for variant in module.VARIANTS}.values():\n"
        "        built = build(module.__name__, variant, 90)\n"
        "        assert built.fits, built\n"
        "        print(variant.name)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8
