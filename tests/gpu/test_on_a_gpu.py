"""What only a GPU can show: `pytest -m gpu` there (Triton compiles then, elsewhere it interprets). Everywhere else: skipped."""

import random

import pytest
import torch

from configs.model_config import ModelConfig
from configs.settings import Settings
from engine.batch import SequenceInput
from engine.device import choose_device, step_limits
from engine.gpu_arithmetic import choose_gpu_arithmetic
from engine.gpu_model import GpuKvPool, GpuModel
from engine.gpu_start import GpuStart
from engine.gpu_weights import GpuAssembly
from engine.loading import load
from engine.parallel import Joined
from kernels.gpu.block_copy import BlockCopier
from kernels.gpu.runtime import INTERPRETED
from kernels.gpu.sample import RowSettings, reference_sample, sample
from kernels.gpu.sample import Settings as RowsSettings
from scheduler.sampling_params import SamplingParams
from scheduler.step import Chunk, SequenceInit, Step
from tests.engine.gpu.test_gpu_worker import InAdvance, Logged, staggered
from tests.engine.gpu.tiny_gpu import cpu_worker, gpu_worker, never_records, one_layer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(INTERPRETED or not torch.cuda.is_available(), reason="needs a GPU, and `pytest -m gpu`"),
]
GPU = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return one_layer(tmp_path_factory.mktemp("one-layer"))


def test_logits_equal_the_exact_paths(folder):
    """Products of fp32 go through TF32 in the kernels' dots: 10 bits of each factor."""
    _, worker = gpu_worker(folder, 8, device=GPU)
    _, exact = cpu_worker(folder, 8)
    ids = random.Random(0).choices(range(3, 320), k=40)
    item = [SequenceInput(token_ids=ids, start=0, block_table=[5, 2, 7])]
    ours = worker._model.logits(worker._model.forward(item)).cpu()
    theirs = exact._model.logits(exact._model.forward(item))
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=1e-2)
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.9


def test_graphs_and_steps_in_advance_change_no_token(folder):
    eager = Logged(*gpu_worker(folder, 30, device=GPU, plan=never_records), 30)
    want = staggered(eager)
    for kind in (Logged, InAdvance):
        engine = kind(*gpu_worker(folder, 30, device=GPU), 30)
        assert staggered(engine) == want
        assert engine.worker.replayed > 0


def test_graphs_hold_sums_over_nccl(folder, tmp_path):
    """With one GPU a group of one: the calls, their capture and their replay are what they are with more."""
    want = staggered(Logged(*gpu_worker(folder, 30, device=GPU), 30))
    ranks = Joined(0, 1, f"file://{tmp_path}/meet", GPU)
    try:
        engine = InAdvance(*gpu_worker(folder, 30, device=GPU, ranks=ranks), 30)
        assert staggered(engine) == want
        assert engine.worker.replayed > 0
    finally:
        ranks.close()


def test_a_decode_step_is_given_without_waiting_for_the_device(folder):
    """torch raises at whatever makes the host wait; the second step runs on tokens that are in flight."""
    _, worker = gpu_worker(folder, 8, device=GPU)
    names = ["a", "b"]
    sampling = [SamplingParams(max_tokens=9, temperature=0.0), SamplingParams(max_tokens=9, top_p=0.9, logprobs=2)]
    new = [
        SequenceInit(request_id=name, prompt_ids=[3, 4, 5], sampling=each)
        for name, each in zip(names, sampling, strict=True)
    ]

    def chunks(start, length):
        return [
            Chunk(request_id=name, start=start, length=length, block_table=[block], samples=True)
            for block, name in enumerate(names)
        ]

    worker.run(Step(step_id=0, chunks=chunks(0, 3), new=new))
    for position in range(3, 6):
        worker.run(Step(step_id=position, chunks=chunks(position, 1)))
    torch.cuda.set_sync_debug_mode("error")
    try:
        given = [worker.submit(Step(step_id=position, chunks=chunks(position, 1))) for position in (6, 7)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.token_id is not None for pending in given for result in pending.result().results)
    assert worker.replayed > 0


@pytest.mark.parametrize(
    "row", [RowSettings(temperature=0.0), RowSettings(), RowSettings(top_p=0.8), RowSettings(top_k=9)]
)
def test_the_compiled_sampler_draws_what_its_reference_draws(row):
    logits = 3 * torch.randn(16, 50_000, generator=torch.Generator().manual_seed(1))
    rows = [RowSettings(temperature=row.temperature, top_p=row.top_p, top_k=row.top_k, seed=seed) for seed in range(16)]
    drawn = sample(logits.to(GPU), RowsSettings.of(rows, GPU)).cpu()
    wanted = reference_sample(logits, RowsSettings.of(rows, torch.device("cpu")))
    assert (drawn == wanted).sum() >= 15  # fp32 against fp64: a race may be that close


def test_blocks_go_to_the_host_and_back():
    pool = torch.randint(0, 256, (32, 1 << 16), dtype=torch.uint8, device=GPU)
    kept, host = pool.clone(), torch.empty(32, 1 << 16, dtype=torch.uint8, pin_memory=True)
    out, back = BlockCopier((pool, host)), BlockCopier((host, pool))
    moves = [(block, 31 - block) for block in range(32)]
    handle = out.copy(moves)
    handle.wait()
    pool.zero_()
    back.copy([(to, start) for start, to in moves]).wait()
    assert torch.equal(pool, kept)


def test_the_memory_plan_holds(smollm2_source):
    """The embedded model's groups, all of the pool's share, every kind of step: nothing beyond what was planned."""
    config = ModelConfig.from_source(smollm2_source)
    settings = Settings(gpu_memory_fraction=0.5)
    assert choose_device(settings).kind == "cuda"
    start = GpuStart(settings, smollm2_source, config, step_limits(settings, "cuda"), GPU)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    plan = start.plan()
    worker = start.worker(plan)
    start.warm_up(worker)
    pool = plan.kv_per_token * plan.block_size * plan.blocks
    taken = torch.cuda.max_memory_reserved() - before
    assert taken <= plan.weights + plan.activations + pool


@pytest.mark.parametrize("weights", ["auto", "dense", "fp8"])
def test_the_embedded_model_says_the_same_in_every_form(smollm2_source, smollm2_tokenizer, weights):
    """The likeliest next word after a sentence that leaves no doubt."""
    config = ModelConfig.from_source(smollm2_source)
    arithmetic = choose_gpu_arithmetic(smollm2_source, config, GPU, weights=weights)
    pool = GpuKvPool(config, 8, 32, GPU, arithmetic.dtype)
    model = GpuModel(config, load(smollm2_source, config, "auto", GpuAssembly(arithmetic, GPU)), pool, context=256)
    ids = smollm2_tokenizer.encode("The capital of France is Paris. The capital of Germany is")
    item = SequenceInput(token_ids=ids, start=0, block_table=[3, 1], wanted=1)
    assert model.logits(model.forward([item])).argmax(-1).tolist() == smollm2_tokenizer.encode(" Berlin")[:1]
