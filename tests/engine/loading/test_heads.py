"""Heads and embeddings: which of the two a checkpoint holds, what transformers makes of it, and what the memory plan counts."""

import json

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from configs.model.source import ModelError, resolve_model
from engine.cpu.formats import packed_bytes
from engine.gpu.formats import choose_gpu_arithmetic
from engine.gpu.weights import weights_bytes as gpu_weights_bytes
from engine.models.layout import weights_bytes
from engine.models.registry import read_config
from tests import tiny_models
from tests.engine.loading.test_loading import add, close, loaded, logits, reference, rewritten, write_gguf

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
KIND = gguf.GGMLQuantizationType


def another_head(tensors):
    tensors[HEAD] = tensors[EMBEDDING].flip(0).contiguous()


def head_of_other_precision(tensors):
    tensors[HEAD] = tensors[EMBEDDING].to(torch.bfloat16)


def head_twice(tensors):
    tensors[HEAD] = tensors[EMBEDDING].clone()


def only_head(tensors):
    tensors[HEAD] = tensors.pop(EMBEDDING)


def nothing(tensors):
    del tensors


CASES = {
    "another head": (another_head, True),
    "a head of other precision": (head_of_other_precision, True),
    "a head twice": (head_twice, False),
    "only a head": (only_head, False),
    "no head": (nothing, False),
}


@pytest.fixture(scope="module", params=CASES)
def checkpoint(request, tiny_model, tmp_path_factory):
    """A tied model's folder, changed, and whether it has a head of its own."""
    change, own = CASES[request.param]
    return rewritten(tiny_model("llama-tied")[0], tmp_path_factory.mktemp("head"), change), own


def test_a_head_is_what_transformers_takes_for_it(checkpoint):
    folder, own = checkpoint
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config, weights = loaded(folder)
    assert config.own_head == own
    assert torch.equal(weights.head, theirs.lm_head.weight) and torch.equal(
        weights.embedding, theirs.model.embed_tokens.weight
    )
    close(logits(config, weights), reference(theirs))
    assert (weights.head.data_ptr() == weights.embedding.data_ptr()) is not own


def test_the_memory_plans_count_a_head_of_its_own(checkpoint, tiny_model):
    folder, own = checkpoint
    source, tied = resolve_model(str(folder)), read_config(resolve_model(str(tiny_model("llama-tied")[1])))
    config, head = read_config(source), tied.vocab_size * tied.hidden_size
    assert weights_bytes(config) == weights_bytes(tied) + own * 4 * head
    assert packed_bytes(source, config, "auto") == packed_bytes(source, tied, "auto") + own * head * 34 // 32
    arithmetic = choose_gpu_arithmetic(source, config, torch.device("cpu"))
    assert gpu_weights_bytes(source, config, arithmetic) == gpu_weights_bytes(source, tied, arithmetic) + own * 4 * head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.update({HEAD: torch.zeros(320, 63)}), r"lm_head\.weight is \[320, 63\], not \[320, 64\]"),
        (lambda t: t.update({HEAD: torch.zeros(321, 64)}), r"lm_head\.weight is \[321, 64\], not \[320, 64\]"),
        (lambda t: t.update({HEAD: t.pop(EMBEDDING)[:300]}), r"lm_head\.weight is \[300, 64\], not \[320, 64\]"),
        (lambda t: t.pop(EMBEDDING), r"lacks tensors: model\.embed_tokens\.weight"),
        (lambda t: t.update({HEAD: torch.zeros(320, 64, dtype=torch.int8)}), r"lm_head\.weight is stored as I8"),
        (lambda t: t.update({"lm_head.bias": torch.zeros(320)}), r"unknown tensors: lm_head\.bias"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}), r"unknown tensors: .*q_proj\.bias"),
    ],
)  # fmt: skip
def test_tensors_of_a_tied_model_that_do_not_fit_are_named(tiny_model, tmp_path, change, message):
    with pytest.raises(ModelError, match=message):
        loaded(rewritten(tiny_model("llama-tied")[0], tmp_path, change))


def test_biases_that_the_config_announces_and_the_files_lack_are_named(tiny_model, tmp_path):
    folder = rewritten(tiny_model("llama")[0], tmp_path, nothing)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"attention_bias": True}))
    with pytest.raises(ModelError, match=r"lacks tensors: model\.layers\.0\.self_attn\.q_proj\.bias"):
        loaded(folder)


def sharded(model, folder, change):
    """The model in two shards of which the second is changed by `change(first, second)`."""
    tiny_models.save(model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = [{name: tensors[name] for name in part} for part in (names[::2], names[1::2])]
    change(*shards)
    places = {}
    for number, shard in enumerate(shards):
        save_file(shard, folder / f"{number}.safetensors")
        places |= dict.fromkeys(shard, f"{number}.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_a_tensor_in_two_shards_is_the_same_in_both_or_refused(tiny_model, tmp_path):
    model, _ = tiny_model("llama")
    name = "model.layers.0.input_layernorm.weight"
    same = sharded(model, tmp_path / "same", lambda first, second: second.update({name: first[name].clone()}))
    close(logits(*loaded(same)), reference(model))
    other = sharded(model, tmp_path / "other", lambda first, second: second.update({name: first[name] + 1}))
    with pytest.raises(ModelError, match=r"0\.safetensors and 1\.safetensors hold different tensors .*input_layernorm"):
        loaded(other)


def test_a_head_in_another_shard_than_the_embedding_is_compared_with_it(tiny_model, tmp_path):
    model, _ = tiny_model("llama-tied")

    def change(first, second):
        holder, other = (first, second) if EMBEDDING in first else (second, first)
        other[HEAD] = holder[EMBEDDING] * 2

    config, weights = loaded(sharded(model, tmp_path, change))
    assert config.own_head and torch.equal(weights.head, weights.embedding * 2)


def test_random_weights_need_no_files_and_have_the_head_that_the_config_names(tiny_model, tmp_path):
    _, folder = tiny_model("llama-tied")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert not read_config(resolve_model(str(tmp_path))).own_head


def test_a_head_in_a_gguf_of_a_tied_model_is_used_and_its_shape_checked(tiny_model, tmp_path):
    model, _ = tiny_model("llama-tied")

    def write(name, head):
        return write_gguf(
            tmp_path / name, model, finish=lambda writer: add(writer, "output.weight", head.numpy(), KIND.F32)
        )

    head = model.state_dict()[EMBEDDING].flip(0)
    config, weights = loaded(write("m.gguf", head))
    assert config.own_head and torch.equal(weights.head, head)
    with pytest.raises(ModelError, match=r"lm_head\.weight is \[319, 64\], not \[320, 64\]"):
        loaded(write("short.gguf", head[1:]))
    with pytest.raises(ModelError, match=r"unknown tensors: output\.bias"):
        loaded(
            write_gguf(
                tmp_path / "b.gguf", model, finish=lambda w: add(w, "output.bias", torch.zeros(320).numpy(), KIND.F32)
            )
        )
