"""Which part of a model each rank has: together they have all of it, and nothing twice except what all need."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from configs.model.source import resolve_model
from engine.cpu.weights import load_weights
from engine.models.family import Axis
from engine.models.registry import family_of, read_config
from engine.tensor_parallel.shards import Shard, split_config
from tests.tiny_models import TINY


@pytest.fixture(scope="module")
def described(tiny_model):
    """A recipe's source and description."""

    def get(name):
        source = resolve_model(str(tiny_model(name)[1]))
        return source, read_config(source)

    return get


@given(
    kv_heads=st.integers(1, 12),
    group=st.integers(1, 6),
    inner=st.integers(1, 64),
    vocabulary=st.integers(1, 97),
    size=st.integers(1, 12),
    flags=st.tuples(*[st.booleans()] * 4),
)
def test_ranks_cover_every_tensor_of_any_model_that_can_be_split(
    described, kv_heads, group, inner, vocabulary, size, flags
):
    heads = kv_heads * group
    qkv_bias, o_bias, mlp_bias, qk_norm = flags
    changes = {"heads": heads, "kv_heads": kv_heads, "intermediate_size": inner, "vocab_size": vocabulary}
    biases = {"qkv_bias": qkv_bias, "o_bias": o_bias, "mlp_bias": mlp_bias, "qk_norm": qk_norm}
    config = replace(described("llama")[1], **changes, **biases, ends=())
    try:
        part = split_config(config, size)
    except ValueError:
        assert heads % size or inner % size or (kv_heads % size and size % kv_heads)
        return
    shards = [Shard.of(config, rank, size) for rank in range(size)]
    for tensor in family_of(config).tensors(config):
        holders = [shard for shard in shards if shard.holds(tensor)]
        check_cover(tensor.shape(config), [shard.ranges(tensor) for shard in holders])
        added_once = tensor.part == "bias" and tensor.spec.role in ("o", "down")
        assert len(holders) == (1 if added_once else size)
    for shard in shards:
        assert len(shard.axes[Axis.QUERIES]) == part.heads * part.head_dim
        assert len(shard.axes[Axis.KEYS]) == part.kv_heads * part.head_dim
        assert len(shard.axes[Axis.INNER]) == part.intermediate_size
        check_that_queries_have_their_keys(config, shard)


def check_cover(shape, parts):
    """Each entry of the whole is in a part; past its end there is at most the padding of the last parts."""
    for dimension, size in enumerate(shape):
        found = {index for ranges in parts for index in ranges[dimension]}
        assert found >= set(range(size))
        assert len({len(ranges[dimension]) for ranges in parts}) == 1, "a collective call needs one shape on all ranks"


def check_that_queries_have_their_keys(config, shard):
    heads = {place // config.head_dim for place in shard.axes[Axis.QUERIES]}
    needed = {head // config.group for head in heads}
    assert needed == {place // config.head_dim for place in shard.axes[Axis.KEYS]}


@pytest.mark.parametrize("name", TINY)
def test_loaded_shards_are_the_whole_and_nothing_twice(described, name):
    source, config = described(name)
    whole = load_weights(source, config, "auto")
    parts = [load_weights(source, config, "auto", rank=rank, size=2) for rank in range(2)]
    assert torch.equal(torch.cat([part.embedding for part in parts]), whole.embedding)
    assert all((part.head is part.embedding) == (whole.head is whole.embedding) for part in parts)
    for index, layer in enumerate(whole.layers):
        shares = [part.layers[index] for part in parts]
        assert torch.equal(torch.cat([share.o.weight for share in shares], 1), layer.o.weight)
        assert torch.equal(torch.cat([share.down.weight for share in shares], 1), layer.down.weight)
        halves = [share.gate_up.weight.chunk(2) for share in shares]
        assert torch.equal(torch.cat([half[which] for which in (0, 1) for half in halves]), layer.gate_up.weight)
        assert [share.o.bias is None for share in shares] == [layer.o.bias is None, True]
        for norm in ("input_norm", "post_norm", "after_attention_norm", "after_mlp_norm"):
            own = getattr(layer, norm)
            assert all(
                getattr(share, norm) is own is None or torch.equal(getattr(share, norm), own) for share in shares
            )
        if layer.wide_qk_norm is not None:
            queries = config.heads * config.head_dim
            cut = [share.wide_qk_norm.tensor_split([queries // 2]) for share in shares]
            assert torch.equal(torch.cat([half[which] for which in (0, 1) for half in cut]), layer.wide_qk_norm)
    kept = sum(part.layers[0].qkv.weight.numel() for part in parts)
    shared = config.kv_heads == 1
    assert kept == whole.layers[0].qkv.weight.numel() + shared * 2 * config.head_dim * config.hidden_size


def test_a_vocabulary_that_does_not_divide_is_filled_up_with_zeros(described):
    source, config = described("llama")
    config = replace(config, vocab_size=321)
    whole = load_weights(source, config, "dummy")
    parts = [load_weights(source, config, "dummy", rank=rank, size=4) for rank in range(4)]
    for name in ("embedding", "head"):
        stacked = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(stacked[:321], getattr(whole, name))
        assert len(stacked) == 324 and not stacked[321:].any()


def test_a_shard_holds_no_memory_of_the_whole(described):
    part = load_weights(*described("llama"), "auto", rank=1, size=2)
    for tensor in (
        part.embedding,
        part.head,
        part.layers[0].qkv.weight,
        part.layers[0].o.weight,
        part.layers[0].down.weight,
    ):
        assert tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes


@pytest.mark.parametrize(
    ("changes", "size", "named"),
    [
        ({}, 3, "4 attention heads cannot be split over 3 ranks evenly; this model can be split over 1, 2, 4$"),
        ({}, 0, "over 0 ranks"),
        ({"heads": 6, "kv_heads": 3}, 2, "3 KV heads can be neither split over 2 ranks evenly .* over 1, 3, 6$"),
        ({"intermediate_size": 90}, 4, "intermediate_size of 90 .* over 4 .* over 1, 2$"),
    ],
)
def test_a_model_that_cannot_be_split_says_how_it_can(described, changes, size, named):
    config = replace(described("llama")[1], **changes)
    with pytest.raises(ValueError, match=named):
        split_config(config, size)


def test_three_kv_heads_are_not_split_over_two(smollm2_source):
    with pytest.raises(ValueError, match=r"9 attention heads .* over 2 .* can be split over 1, 3$"):
        split_config(read_config(smollm2_source), 2)
