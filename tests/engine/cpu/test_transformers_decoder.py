"""Architectures that no family here describes, by transformers' classes over our blocks: their own logits and tokens."""

import json
import random

import pytest
import torch
import transformers
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.cpu.fallback.transformers_decoder import TransformersDecoder
from engine.cpu.formats import choose_arithmetic
from engine.cpu.kv_pool import KvPool
from engine.cpu.memory_plan import plan_memory
from engine.cpu.model import ExactModel
from engine.cpu.worker import CpuWorker
from engine.gpu.formats import GPU
from engine.models import registry
from engine.models.registry import known_families, read_description
from engine.start import Starter
from scheduler.types.messages import MemoryPlan
from tests.engine.cpu.test_decoder import run_chunks, scattered_table
from tests.engine.samplers import cpu_sampler
from tests.engine.test_start import Recorder
from tests.engine.token_suite import is_greedy
from tests.scheduler.sim import Engine
from tests.tiny_models import SHAPE

LATENT = {"q_lora_rank": 32, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2}
MODELS = {  # of ways to compute that no family has
    "mixtral": ("Mixtral", {"num_local_experts": 4}),
    "olmoe": ("Olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek_v3": (  # keys wider than values, experts in groups
        "DeepseekV3",
        {**LATENT, **EXPERTS, "n_routed_experts": 8, "n_group": 2, "topk_group": 1, "num_key_value_heads": 4}
        | {"first_k_dense_replace": 1},
    ),
    "cohere2": ("Cohere2", {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"] * 2,
                            "num_hidden_layers": 4}),  # attention beside the MLP, windows by layer
    "glm4": ("Glm4", {"head_dim": 16}),  # pairs side by side, of a part
    "nemotron": ("Nemotron", {}),  # an MLP without a gate
    "starcoder2": ("Starcoder2", {"sliding_window": None}),  # LayerNorm
}  # fmt: skip
LONG = [pytest.param(name, marks=pytest.mark.long) for name in ("qwen3_moe", "granitemoe", "phi", "exaone4")]
MODELS |= {
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "num_experts": 4, "head_dim": 16}),
    "granitemoe": ("GraniteMoe", {"num_local_experts": 4, "num_experts_per_tok": 2, "attention_multiplier": 0.25}),
    "phi": ("Phi", {}),
    "exaone4": ("Exaone4", {"sliding_window": 24}),
}
EACH = pytest.mark.parametrize("name", [*(name for name in MODELS if name not in {p.values[0] for p in LONG}), *LONG])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A name to transformers' model, at random, and the folder it is saved in."""
    known = {}

    def get(name):
        if name not in known:
            kind, changes = MODELS[name]
            torch.manual_seed(0)
            config = getattr(transformers, f"{kind}Config")(**(SHAPE | {"pad_token_id": 0} | changes))
            model = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type])(config).eval()
            generator = torch.Generator().manual_seed(1)
            for key, parameter in model.named_parameters():
                parameter.data.normal_(1.0 if key.endswith("norm.weight") else 0.0, 0.2, generator=generator)
            folder = tmp_path_factory.mktemp(name)
            model.save_pretrained(folder)
            known[name] = model, resolve_model(str(folder))
        return known[name]

    return get


def decoder(source, blocks=40, size=8):
    config = read_description(source)
    pool = KvPool(config, blocks, size)
    return TransformersDecoder(source, config, "auto", pool), pool


@EACH
def test_logits_are_transformers_own_for_every_chunk_size(made, name):
    model, source = made(name)
    assert name not in known_families()
    ours, pool = decoder(source)
    ids = random.Random(0).choices(range(3, 320), k=75)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    assert expected.std() > 0.05
    for chunk in (1, 7, 512):
        found = run_chunks(ours, pool, ids, scattered_table(10), chunk)
        torch.testing.assert_close(found, expected, atol=2e-4 * float(expected.std()), rtol=0)


@EACH
def test_tokens_are_transformers_own_in_a_batch_of_eight_staggered(made, name):
    """And with a warm cache, and with too few blocks."""
    model, source = made(name)
    shared = random.Random(1).choices(range(3, 320), k=32)
    prompts = [random.Random(n).choices(range(3, 320), k=n) for n in (1, 5, 17, 33, 40)]
    prompts += [shared + random.Random(n).choices(range(3, 320), k=n) for n in (3, 20, 30)]

    def engine(blocks, **how):
        ours, pool = decoder(source, blocks, 16)
        worker = CpuWorker(ExactModel(ours, pool), cpu_sampler(320, ()))
        how |= {"eos": frozenset(), "context": 112, "max_step_tokens": 24, "decode_watermark": 0.0}
        return Engine(blocks=blocks, block_size=16, worker=worker, **how)

    def generate(on, prefix="p"):
        for index, ids in enumerate(prompts):
            on.add(f"{prefix}{index}", ids, max_tokens=24, ignore_eos=True)
            on.tick()
        on.drain()
        return [on.outputs[f"{prefix}{index}"] for index in range(len(prompts))]

    roomy = engine(64)
    expected = generate(roomy)
    assert all(is_greedy(model, ids, out) for ids, out in zip(prompts, expected, strict=True))
    assert generate(roomy, "warm") == expected
    assert sum(roomy.ends[f"warm{index}"].times.cached_tokens for index in range(8)) > 100
    tight = engine(8)
    assert generate(tight) == expected
    assert tight.scheduler.snapshot().preemptions > 0


def test_two_models_in_one_process_keep_to_their_own_blocks(made):
    """transformers finds attention functions by name: each decoder has one."""
    (one, source), (other, second) = made("mixtral"), made("glm4")
    ids = random.Random(0).choices(range(3, 320), k=20)
    decoders = [(model, *decoder(folder)) for model, folder in ((one, source), (other, second))]
    for model, ours, pool in (*decoders, decoders[0]):
        with torch.inference_mode():
            expected = model(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(run_chunks(ours, pool, ids, [1, 2, 3], 7), expected, atol=1e-4, rtol=0)


def test_an_engine_serves_one_and_says_what_it_costs(made):
    _, source = made("mixtral")
    recorder = Recorder()
    _, ready = Starter(Settings(kv_blocks=8), source, recorder).start()
    plan = next(event for event in recorder.events if isinstance(event, MemoryPlan))
    assert "transformers' own classes" in plan.arithmetic and "no family here describes mixtral" in plan.arithmetic
    assert ready.device == f"cpu, exact by transformers {transformers.__version__}"
    numbers = sum(parameter.numel() for parameter in made("mixtral")[0].parameters())
    assert plan.weights == 4 * numbers
    assert (ready.vocab_size, ready.eos_token_ids) == (320, [2])


def test_a_family_can_be_left_to_transformers_too(tiny_model):
    model, folder = tiny_model("qwen3")
    source = resolve_model(str(folder))
    config = read_description(source, "transformers")
    assert (config.implementation, read_description(source).implementation) == ("transformers", "headrace")
    pool = KvPool(config, 40, 8)
    ids = random.Random(0).choices(range(3, 320), k=40)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0]
    found = run_chunks(TransformersDecoder(source, config, "auto", pool), pool, ids, scattered_table(10), 7)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_random_weights_need_no_files(made, tmp_path):
    (tmp_path / "config.json").write_text((made("mixtral")[1].path / "config.json").read_text())
    source = resolve_model(str(tmp_path))
    config = read_description(source)
    pool = KvPool(config, 4, 8)
    ours = TransformersDecoder(source, config, "dummy", pool)
    assert run_chunks(ours, pool, [5, 6, 7], [0], 2).isfinite().all()
    settings = Settings(load_format="dummy", kv_blocks=4)
    assert plan_memory(settings, source, config, choose_arithmetic(settings, config)).weights == 0
    with pytest.raises(ModelError, match="--load-format gguf does not fit"):
        TransformersDecoder(source, config, "gguf", pool)


def described(tmp_path, content):
    (tmp_path / "config.json").write_text(json.dumps(content))
    return read_description(resolve_model(str(tmp_path)))


REFUSED = {
    "another's blocks": ({**SHAPE, "model_type": "stablelm"}, "StableLmForCausalLM of transformers lets nobody else store"),
    "chunks": (
        {**SHAPE, "model_type": "llama4_text", "head_dim": 16, "num_local_experts": 2},
        "layers of chunked_attention, which blocks of keys and values do not hold",
    ),
    "an encoder too": ({"model_type": "t5"}, "transformers has no class that generates text by t5|not a decoder of text alone"),
    "positions by the batch": (
        {**SHAPE, "model_type": "mixtral", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "turns positions of type dynamic by the longest sequence of a step, so that one request would change another's",
    ),
    "a width for each layer": (
        {**SHAPE, "model_type": "mixtral", "num_attention_heads": 0},
        "description of mixtral lacks a size or has it for each layer",
    ),
    "nobody's": ({**SHAPE, "model_type": "brandnew"}, "neither a family here nor transformers reads it: .*brandnew"),
    "quantized": (
        {**SHAPE, "model_type": "mixtral", "quantization_config": {"quant_method": "gptq"}},
        "quantized safetensors are not implemented",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_our_blocks_cannot_hold_is_refused_by_name(tmp_path, what):
    content, said = REFUSED[what]
    with pytest.raises(ModelError, match=said):
        described(tmp_path, {key: value for key, value in content.items() if key != "attn_implementation"})


def test_headrace_alone_refuses_what_it_does_not_describe(made):
    with pytest.raises(ModelError, match=r"'mixtral' is not implemented; known: .*slowly: use --model-impl auto"):
        read_description(made("mixtral")[1], "headrace")


def test_what_attention_lacks_is_told_before_anything_is_served(tmp_path):
    """gpt-oss has sinks."""
    shape = {key: value for key, value in SHAPE.items() if key != "attn_implementation"}
    content = {**shape, "model_type": "gpt_oss", "head_dim": 16, "num_local_experts": 2, "sliding_window": 24}
    config = described(tmp_path, content | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}})
    pool = KvPool(config, 2, 8)
    with pytest.raises(ModelError, match="does not compute over our blocks: attention sinks are not computed"):
        TransformersDecoder(resolve_model(str(tmp_path)), config, "dummy", pool)


def test_a_class_that_counts_positions_by_itself_is_refused(made, monkeypatch):
    """Its texts would change with what else is in the step."""
    from transformers.models.mixtral.modeling_mixtral import MixtralModel

    forward = MixtralModel.forward

    def counting(self, input_ids, position_ids, **how):
        return forward(self, input_ids=input_ids, position_ids=torch.arange(input_ids.shape[1])[None], **how)

    monkeypatch.setattr(MixtralModel, "forward", counting)
    with pytest.raises(ModelError, match="computes a text otherwise beside another one"):
        decoder(made("mixtral")[1])


@pytest.mark.parametrize("model_type", ["brandnew", "mixtral"])
def test_code_beside_a_model_is_never_run(made, tmp_path, model_type):
    """A folder may name classes beside it: where transformers has none by the model's type it is refused, else its are taken."""
    evidence = tmp_path / "it ran"
    (tmp_path / "own.py").write_text(f"open({str(evidence)!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    content = json.loads((made("mixtral")[1].path / "config.json").read_text()) | {"model_type": model_type}
    content["auto_map"] = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    if model_type == "brandnew":
        with pytest.raises(ModelError, match="neither a family here nor transformers reads it"):
            described(tmp_path, content)
    else:
        config = described(tmp_path, content)
        TransformersDecoder(resolve_model(str(tmp_path)), config, "dummy", KvPool(config, 4, 8))
    assert not evidence.exists()


def test_a_file_that_lacks_tensors_is_refused_and_no_zeros_are_served(made, tmp_path):
    from safetensors.torch import load_file, save_file

    source = made("nemotron")[1]
    tensors = load_file(source.path / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((source.path / "config.json").read_text())
    broken = resolve_model(str(tmp_path))
    config = read_description(broken)
    with pytest.raises(ModelError, match=r"lacks tensors: model\.layers\.1\.mlp\.up_proj\.weight"):
        TransformersDecoder(broken, config, "auto", KvPool(config, 2, 8))


def test_a_gpu_refuses_it_by_name(made):
    config = read_description(made("mixtral")[1])
    with pytest.raises(
        ModelError, match="the GPU kernels compute no mixtral models, which here only transformers' classes do"
    ):
        GPU.check(config)


def test_without_transformers_it_says_how_to_get_it(made, monkeypatch):
    """It is an extra: plain serving needs nothing of it."""
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"'mixtral' is not implemented; .*slowly: pip install 'headrace\[transformers\]'"
    ):
        read_description(made("mixtral")[1])
    with pytest.raises(ModelError, match=r"--model-impl transformers needs it: pip install 'headrace\[transformers\]'"):
        read_description(made("mixtral")[1], "transformers")


def test_an_encoder_is_not_left_to_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="computes decoders, and bert is an encoder"):
        read_description(resolve_model(str(tmp_path)), "transformers")


def test_a_gguf_file_is_read_by_families_alone(smollm2_source):
    with pytest.raises(ModelError, match="--model-impl transformers reads Hugging Face folders, not GGUF files"):
        read_description(smollm2_source, "transformers")
