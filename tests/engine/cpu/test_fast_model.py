"""`--cpu-precision fast`: close to transformers for every architecture, and the same bits however the work is cut."""

import random
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from configs.model.scales import Scales
from configs.model.source import resolve_model
from configs.settings import Settings
from engine.cpu.decoder import Decoder
from engine.cpu.formats import choose_arithmetic, packed_bytes
from engine.cpu.kv_pool import KvPool, PackedKvPool
from engine.cpu.model import ExactModel, FastModel
from engine.cpu.packed_weights import assemble_packed
from engine.cpu.weights import load_weights
from engine.linear import Linear
from engine.loading import load
from engine.models.families import llama
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from kernels.cpu import native_reference as reference
from kernels.cpu.build import build, compiler
from kernels.cpu.packing import pack_float, unpack
from kernels.cpu.variants import supported
from tests.tiny_models import TINY

pytestmark = pytest.mark.skipif(not supported() or compiler() is None, reason="no C++ compiler, or another processor")
LENGTH, BLOCKS, SIZE = 75, 40, 16


@pytest.fixture(scope="module", autouse=True)
def built():
    build(supported()[:1])


def fast(source, size=SIZE, assemble=assemble_packed):
    config = read_config(source)
    arithmetic = choose_arithmetic(Settings(block_size=size), config)
    assert arithmetic.precision == "fast", arithmetic.reason
    weights = load(source, config, "auto", assemble)
    pool = PackedKvPool(config, BLOCKS, size)
    return config, FastModel(config, weights, pool, arithmetic=arithmetic, context=512, threads=2)


def prompt(vocab, length=LENGTH, seed=0):
    return random.Random(seed).choices(range(3, vocab), k=length)


def table(seed=0):
    return random.Random(seed).sample(range(BLOCKS), BLOCKS // 4)


def hidden(model, ids, blocks, chunk):
    parts = [
        model.forward([SequenceInput(token_ids=ids[start : start + chunk], start=start, block_table=blocks)]).clone()
        for start in range(0, len(ids), chunk)
    ]
    return torch.cat(parts)


class RoundingLinear(Linear):
    """A product whose rows are rounded as the kernels round them."""

    def __call__(self, x, adapters=None):
        return rounding_linear(x, self.weight, self.bias)


def rounded(weights):
    """`weights` as the kernels hold them: every matrix in 8-bit groups."""
    layers = [
        replace(
            layer,
            **{
                name: RoundingLinear(unpack(pack_float(product.weight)), product.bias)
                for name in ("qkv", "o", "gate_up", "down")
                for product in [getattr(layer, name)]
            },
        )
        for layer in weights.layers
    ]
    tables = {name: unpack(pack_float(getattr(weights, name))) for name in ("embedding", "head")}
    return replace(weights, layers=layers, **tables)


def rounding_linear(rows, weight, bias=None):
    out = reference.quantized(rows.contiguous()) @ weight.T
    return out if bias is None else out + bias


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_the_torch_decoder_with_the_same_roundings(tiny_model, monkeypatch, name):
    """What remains is the rounding of the bf16 cache, which random weights amplify to 1-5 %."""
    source = resolve_model(str(tiny_model(name)[1]))
    config, model = fast(source)
    ids = prompt(config.vocab_size)
    logits = model.logits(hidden(model, ids, table(), LENGTH)).clone()
    monkeypatch.setattr("engine.cpu.decoder.F", SimpleNamespace(linear=rounding_linear, embedding=F.embedding))
    exact = ExactModel(Decoder(config, rounded(load_weights(source, config, "auto"))), KvPool(config, BLOCKS, SIZE))
    expected = exact.logits(hidden(exact, ids, table(), LENGTH))
    error = (logits - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.mean() < 0.08
    assert torch.equal(model.logits(hidden(model, ids, table(1), 7)), logits)


VARIANTS = {  # of a recipe: what is left out of the description, and must then be seen to be missing
    "gemma2": ["embedding_scale", "attention_scale", "attention_soft_cap", "final_soft_cap"],
    "granite": ["embedding_scale", "attention_scale", "residual_scale", "logit_scale"],
    "gemma3": ["window_rotation"],
    "smollm3": ["unrotated_layers"],
    "phi3": ["rotary_dim"],
}


@pytest.mark.parametrize(("name", "variant"), [(name, one) for name, some in VARIANTS.items() for one in some])
def test_each_variant_tells(tiny_model, monkeypatch, name, variant):
    """The decoder of the test above without it is farther off than the roundings are."""
    source = resolve_model(str(tiny_model(name)[1]))
    config, model = fast(source)
    ids = prompt(config.vocab_size)
    logits = model.logits(hidden(model, ids, table(), LENGTH)).clone()
    if variant in Scales.__slots__:
        without = replace(config, scales=replace(config.scales, **{variant: None}))
    else:
        without = replace(config, **{variant: () if variant == "unrotated_layers" else None})
    monkeypatch.setattr("engine.cpu.decoder.F", SimpleNamespace(linear=rounding_linear, embedding=F.embedding))
    weights = rounded(load_weights(source, config, "auto"))
    exact = ExactModel(Decoder(without, weights), KvPool(config, BLOCKS, SIZE))
    expected = exact.logits(hidden(exact, ids, table(), LENGTH))
    assert ((logits - expected).norm(dim=1) / expected.norm(dim=1)).mean() > 0.12


def test_a_row_with_an_adapter_is_a_defect(tiny_model):
    """The scheduler refuses the request: the backend has no adapters."""
    _, model = fast(resolve_model(str(tiny_model("llama")[1])))
    with pytest.raises(AssertionError, match="no LoRA adapter"):
        model.forward([SequenceInput(token_ids=[5], start=0, block_table=[0], adapter=1)])


def test_the_activation_is_the_familys(tiny_model, monkeypatch):
    """The C++ kernels compute what the torch decoder does, and not what they do for other families."""
    source = resolve_model(str(tiny_model("llama")[1]))
    config, other = fast(source)
    ids = prompt(config.vocab_size)
    silu = other.logits(hidden(other, ids, table(), LENGTH)).clone()
    monkeypatch.setattr(llama, "FAMILY", replace(llama.FAMILY, activation="gelu_tanh"))
    _, model = fast(source)
    logits = model.logits(hidden(model, ids, table(), LENGTH)).clone()
    monkeypatch.setattr("engine.cpu.decoder.F", SimpleNamespace(linear=rounding_linear, embedding=F.embedding))
    exact = ExactModel(Decoder(config, rounded(load_weights(source, config, "auto"))), KvPool(config, BLOCKS, SIZE))
    expected = exact.logits(hidden(exact, ids, table(), LENGTH))
    assert ((logits - expected).norm(dim=1) / expected.norm(dim=1)).mean() < 0.08
    assert ((silu - expected).norm(dim=1) / expected.norm(dim=1)).mean() > 0.16


def test_an_activation_that_the_kernels_lack_is_computed_exactly(tiny_model, monkeypatch):
    config = read_config(resolve_model(str(tiny_model("llama")[1])))
    monkeypatch.setattr(llama, "FAMILY", replace(llama.FAMILY, activation="gelu"))
    arithmetic = choose_arithmetic(Settings(block_size=SIZE), config)
    assert arithmetic.precision == "exact"
    assert "know the activations silu, gelu_tanh, not gelu, which llama models have" in arithmetic.reason


@pytest.mark.parametrize(
    ("name", "switch"),
    [
        *(("llama-biased", {bias: None}) for bias in ("q_bias", "o_bias", "up_bias", "down_bias")),
        *(("qwen3", {norm: None}) for norm in ("q_norm", "k_norm")),
        ("mistral-sliding", {"window": 0}),
    ],
)
def test_each_switch_shows_in_the_logits(tiny_model, name, switch):
    """So that the bound above would catch a missing one."""
    source = resolve_model(str(tiny_model(name)[1]))

    def without(reader, config):
        weights = assemble_packed(reader, config)
        return replace(weights, layers=[replace(layer, **switch) for layer in weights.layers])

    config, model = fast(source)
    _, lacking = fast(source, assemble=without)
    ids = prompt(config.vocab_size)
    logits, other = (each.logits(hidden(each, ids, table(), LENGTH)) for each in (model, lacking))
    assert ((logits - other).norm(dim=1) / logits.norm(dim=1)).mean() > 0.1


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen3"])
def test_wanted_rows_are_those_rows_of_the_whole(tiny_model, name):
    """The last layer computes only them, but writes keys and values for all rows."""
    _, folder = tiny_model(name)
    config, model = fast(resolve_model(str(folder)))
    lengths, wanted = [40, 23, 1, 30], [1, 0, 1, 5]
    prompts = [prompt(config.vocab_size, length, seed=length) for length in lengths]
    blocks = random.Random(1).sample(range(BLOCKS), BLOCKS)

    def run(counts):
        return model.forward(
            [
                SequenceInput(token_ids=ids, start=0, block_table=blocks[4 * index : 4 * index + 4], wanted=count)
                for index, (ids, count) in enumerate(zip(prompts, counts, strict=True))
            ]
        ).clone()

    whole = run([None] * 4).split(lengths)
    model.pool.storage.fill_(-1)  # NaN: what is read below was written below
    expected = torch.cat([part[len(part) - count :] for part, count in zip(whole, wanted, strict=True)])
    assert torch.equal(run(wanted), expected)
    after = SequenceInput(token_ids=[5], start=23, block_table=blocks[4:8])  # reads what a chunk without results left
    ours = model.forward([after]).clone()
    assert torch.equal(ours, hidden(model, [*prompts[1], 5], blocks[20:24], 512)[-1:])


@pytest.mark.parametrize("name", ["llama", "mistral-sliding", "qwen3"])
def test_a_row_is_the_same_bits_in_any_company(tiny_model, name):
    _, folder = tiny_model(name)
    config, model = fast(resolve_model(str(folder)))
    lengths, chunks = [75, 31, 1, 50], [16, 5, 1, 50]
    prompts = [prompt(config.vocab_size, length, seed=length) for length in lengths]
    alone = [hidden(model, ids, table(), 512) for ids in prompts]
    blocks = random.Random(1).sample(range(BLOCKS), BLOCKS)
    done, rows = [0] * 4, [[], [], [], []]
    while any(place < length for place, length in zip(done, lengths, strict=True)):
        active = [index for index in range(4) if done[index] < lengths[index]]
        inputs = [
            SequenceInput(
                token_ids=prompts[index][done[index] : done[index] + chunks[index]],
                start=done[index],
                block_table=blocks[index * 10 : index * 10 + 10],
            )
            for index in active
        ]
        parts = model.forward(inputs).clone().split([len(item.token_ids) for item in inputs])
        for index, part in zip(active, parts, strict=True):
            rows[index].append(part)
            done[index] += len(part)
    for expected, parts in zip(alone, rows, strict=True):
        assert torch.equal(torch.cat(parts), expected)


def test_the_embedded_model_agrees_with_exact(smollm2_source, smollm2_decoder, smollm2_tokenizer):
    """A short text here; `python -m loadtest.quality` measures a long one."""
    from engine.cpu.kv_pool import KvPool
    from engine.cpu.model import ExactModel

    _, model = fast(smollm2_source, size=32)
    exact = ExactModel(smollm2_decoder, KvPool(smollm2_decoder.config, BLOCKS, 32))
    ids = smollm2_tokenizer.encode(TEXT)
    ours, theirs = (each.logits(hidden(each, ids, table(), 512)) for each in (model, exact))
    targets = torch.tensor(ids[1:])
    losses = [torch.nn.functional.cross_entropy(logits[:-1], targets).item() for logits in (ours, theirs)]
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.9
    assert abs(losses[0] - losses[1]) < 0.05


def test_the_plan_counts_the_weights_that_are_loaded(smollm2_source, tiny_model):
    for source in (
        smollm2_source,
        resolve_model(str(tiny_model("llama-biased")[1])),
        resolve_model(str(tiny_model("qwen3")[1])),
    ):
        config = read_config(source)
        weights = load(source, config, "auto", assemble_packed)
        tensors = {id(weights.final_norm): weights.final_norm}
        for holder in (weights.embedding, weights.head):
            tensors[id(holder.records)] = holder.records
        for layer in weights.layers:
            for name in layer.__slots__:
                value = getattr(layer, name)
                tensor = getattr(value, "records", value)
                if isinstance(tensor, torch.Tensor):
                    tensors[id(tensor)] = tensor
        assert sum(tensor.nbytes for tensor in tensors.values()) == packed_bytes(source, config, "auto")


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"cpu_precision": "exact"}, "--cpu-precision exact"), ({"block_size": 8}, "multiple of 16, not 8")],
)
def test_exact_where_fast_is_not_asked_for_or_not_possible(smollm2_source, settings, words):
    arithmetic = choose_arithmetic(Settings(**settings), read_config(smollm2_source))
    assert arithmetic.precision == "exact"
    assert arithmetic.library is None
    assert words in arithmetic.reason


TEXT = (
    "The water came down from the hills in a long wooden channel, and the miller had a gate with which he let it on to the "
    "wheel. In spring there was more than he could use; in August he waited for it, and ground by night what the day had "
    "gathered in the pond. His son, who had been to the town, said that one ought to build the channel wider. The old man "
    "answered that the hills gave what they gave, and that a wide channel in August was only a dry one. Still he let the boy "
    "try, and they worked at it through the winter, when there was nothing to grind. In the morning the frost lay on the "
    "boards, and they had to light a fire before the nails would go in. When the snow melted the water filled the new channel "
    "to the brim, the wheel turned as it had never turned, and at noon the axle broke."
)
