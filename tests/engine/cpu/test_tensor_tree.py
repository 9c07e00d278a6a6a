"""A structure of tensors as bytes: what comes back is the same, and bytes name no class that the reader does not know."""

import mmap
from dataclasses import dataclass

import pytest
import torch

from engine.cpu.tensor_tree import Spot, decode, encode, tensor_at


@dataclass
class Leaf:
    weight: torch.Tensor
    bias: torch.Tensor | None = None
    bits: int = 4


@dataclass
class Whole:
    leaves: list[Leaf]
    named: dict[str, Leaf]
    scale: float = 0.5


@pytest.fixture
def memory():
    memory = mmap.mmap(-1, 4096)
    memory[:64] = bytes(range(64))
    return memory


def test_a_structure_comes_back_and_what_was_one_is_one(memory):
    spots = {}

    def spot_of(tensor):
        return spots.setdefault(id(tensor), Spot.of(tensor, 8 * len(spots)))

    leaf = Leaf(torch.zeros(2, 2, dtype=torch.int16))
    data = encode(Whole([leaf, Leaf(leaf.weight, torch.zeros(1))], {"tied": leaf}), spot_of)
    found = decode(data, {"Leaf": Leaf, "Whole": Whole}, memory)
    first, second = found.leaves
    assert found.named["tied"] is first and second.weight is first.weight and found.scale == 0.5
    assert first.weight.tolist() == [[0x0100, 0x0302], [0x0504, 0x0706]] and first.bias is None and first.bits == 4
    assert second.bias.dtype == torch.float32 and second.bias.shape == (1,)


@pytest.mark.parametrize(
    "data",
    [
        b'{"class":"Popen","fields":{}}',
        b'{"spot":[0,"float32"]}',
        b'{"spot":[0,"load",[1]]}',
        b'{"spot":[4000,"float32",[100]]}',
        b"not json",
    ],
)
def test_what_is_no_such_structure_is_refused(data, memory):
    with pytest.raises(ValueError):
        decode(data, {"Leaf": Leaf}, memory)


def test_what_has_no_plain_form_is_not_written():
    with pytest.raises(TypeError, match="a set is neither"):
        encode(Leaf({1}), lambda tensor: Spot.of(tensor, 0))


def test_a_tensor_is_a_view(memory):
    tensor = tensor_at(memory, Spot(0, "uint8", (4,)))
    memory[0] = 9
    assert tensor.tolist() == [9, 1, 2, 3]
