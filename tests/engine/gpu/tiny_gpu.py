"""A GPU worker over a tiny model, on CPU tensors: Triton interprets, and what would be graphs runs eagerly."""

import torch
import transformers

from configs.model.source import resolve_model
from engine.cpu.decoder import Decoder
from engine.cpu.kv_pool import KvPool
from engine.cpu.model import ExactModel
from engine.cpu.weights import load_weights
from engine.cpu.worker import CpuWorker
from engine.gpu.formats import GpuArithmetic
from engine.gpu.graph_policy import GraphPlan
from engine.gpu.model import GpuKvPool, GpuModel
from engine.gpu.weights import GpuAssembly
from engine.gpu.worker import GpuWorker
from engine.loading import load
from engine.models.registry import read_config
from engine.sampling.registry import standard_edits
from engine.sampling.sampler import CpuSampler
from tests import tiny_models

SIZE, CONTEXT = 16, 64
CPU = torch.device("cpu")
ONE_LAYER = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1}


def one_layer(folder):
    """A model small enough for interpreted kernels."""
    config = tiny_models.Tiny("Llama", ONE_LAYER).config()
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(0)
    for key, parameter in model.named_parameters():
        parameter.data.normal_(1.0 if key.endswith("norm.weight") else 0.0, 0.3, generator=generator)
    return tiny_models.save(model, folder)


class RecordsAtOnce(GraphPlan):
    """As if recording cost nothing: the second step of a shape has a graph."""

    def was_recorded(self, bucket, seconds):
        super().was_recorded(bucket, 0.0)

    def failed(self, bucket, seconds):
        super().failed(bucket, 0.0)


def never_records(max_rows):
    return GraphPlan(max_rows, recording=False)


def gpu_worker(folder, blocks, *, max_running=8, plan=RecordsAtOnce, device=CPU, ranks=None, edits=None, **given):
    source = resolve_model(str(folder))
    config = read_config(source)
    pool = GpuKvPool(config, blocks, SIZE, device, torch.float32)
    pool.storage.fill_(float("nan"))  # whatever is read must have been written
    weights = load(source, config, "auto", GpuAssembly(GpuArithmetic("dense", torch.float32), device))
    model = GpuModel(config, weights, pool, context=CONTEXT, group=ranks)
    edits = edits or standard_edits(config.vocab_size, config.eos_token_ids)
    return config, GpuWorker.of(model, edits, plan(max_running), torch.float32, **given)


def cpu_worker(folder, blocks, edits=None, **given):
    source = resolve_model(str(folder))
    config = read_config(source)
    model = ExactModel(Decoder(config, load_weights(source, config, "auto")), KvPool(config, blocks, SIZE))
    edits = edits or standard_edits(config.vocab_size, config.eos_token_ids)
    return config, CpuWorker(model, CpuSampler(config.vocab_size, edits), **given)
