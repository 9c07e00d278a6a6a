"""An adapter reaches every product of every layer as a row index: a toy LoRA beside the weights, made here, on both backends."""

from dataclasses import replace

import pytest
import torch

from tests.engine.gpu.test_worker import InAdvance, Logged, prompt
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, one_layer

BLOCKS = 20
ADAPTERS = {"law": "1a2b", "verse": "3c4d"}
PRODUCTS = ("qkv", "o", "gate_up", "down")
BACKENDS = pytest.mark.parametrize("backend", ["cpu", "gpu"])


class ToyLora:
    """A product, and what each adapter adds to it: x A^T B^T, of rank 2 (Hu et al. 2021, "LoRA", section 4.1)."""

    def __init__(self, product, seed):
        generator = torch.Generator().manual_seed(seed)
        outputs, columns = product.weight.shape
        self.product = product
        self.nbytes = product.nbytes
        self.down = 0.3 * torch.randn(1 + len(ADAPTERS), 2, columns, generator=generator)
        self.up = 0.3 * torch.randn(1 + len(ADAPTERS), outputs, 2, generator=generator)
        self.down[0] = 0  # no adapter
        self.given = []

    def __call__(self, x, adapters=None):
        self.given.append(None if adapters is None else adapters.tolist())
        plain = self.product(x, adapters)
        if adapters is None:
            return plain
        narrow = torch.einsum("oc,orc->or", x, self.down[adapters])
        return plain + torch.einsum("or,o...r->o...", narrow, self.up[adapters])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


def engine(folder, backend):
    make, kind = (cpu_worker, Logged) if backend == "cpu" else (gpu_worker, InAdvance)
    config, worker = make(folder, BLOCKS, adapters=ADAPTERS)
    weights = worker._model._decoder._weights if backend == "cpu" else worker._model._weights
    weights.layers[:] = [
        replace(layer, **{name: ToyLora(getattr(layer, name), seed) for seed, name in enumerate(PRODUCTS)})
        for layer in weights.layers
    ]
    products = {name: getattr(layer, name) for layer in weights.layers for name in PRODUCTS}
    return kind(config, worker, BLOCKS, adapters=ADAPTERS), products


def serve(folder, backend, adapters):
    """Requests of one prompt, each with its adapter, as many as there are in one batch."""
    serving, products = engine(folder, backend)
    for adapter in adapters:
        serving.add(f"with {adapter}", prompt(9), max_tokens=6, ignore_eos=True, adapter=adapter)
    serving.drain()
    return serving.outputs, products


@BACKENDS
def test_rows_of_different_adapters_in_one_batch_are_as_alone(folder, backend):
    together, products = serve(folder, backend, ["verse", "", "law"])
    assert len({tuple(tokens) for tokens in together.values()}) == 3
    for adapter in ("", *ADAPTERS):
        assert serve(folder, backend, [adapter])[0] == {f"with {adapter}": together[f"with {adapter}"]}
    assert any(given and len(set(given)) == 3 for given in products["down"].given), "never in one batch"
    assert all(product.given == products["qkv"].given for product in products.values())


def test_both_backends_say_the_same(folder):
    assert serve(folder, "cpu", ["law", "", "verse"])[0] == serve(folder, "gpu", ["law", "", "verse"])[0]


@BACKENDS
def test_a_step_without_adapters_hands_on_none(folder, backend):
    outputs, products = serve(folder, backend, [""])
    plain = Logged(*cpu_worker(folder, BLOCKS), BLOCKS)
    plain.add("with ", prompt(9), max_tokens=6, ignore_eos=True)
    plain.drain()
    assert outputs == plain.outputs
    assert all(set(product.given) == {None} for product in products.values())
