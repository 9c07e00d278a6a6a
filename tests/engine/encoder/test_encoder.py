"""Encoders of every family against transformers: vectors, pairs, heads; what is read of their files and what is refused."""

import json
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from configs.model.pooling import PoolingRules
from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.backend import Startup
from engine.device import Device
from engine.encoder.backend import EncoderBackend
from engine.models.registry import read_description
from engine.models.tasks import kinds_of
from scheduler.types.output_kind import OutputKind
from scheduler.types.sampling_params import SamplingParams
from scheduler.types.step import Chunk, ChunkPhase, SequenceInit, Step
from tests.tiny_encoders import KINDS, save_encoder, sentence_files, tiny_encoder

TEXTS = [[2, 9, 3], [2, 11, 5, 40, 3], [2, *range(5, 45), 3], [2, 7, 3], [2, 3], [2, 13, 12, 20, 3]]
VECTOR, SCORES = OutputKind.VECTOR, OutputKind.SCORES


def backend_of(folder, **settings):
    source = resolve_model(str(folder))
    startup = Startup(
        Settings(device="cpu", **settings),
        source,
        read_description(source),
        lambda name: nullcontext(),
        lambda do: do(),
    )
    return EncoderBackend(startup, Device("cpu", "for the test"))


def results(folder, texts, kind=VECTOR, pair_starts=None, **settings):
    """What a worker makes of the texts in one step."""
    backend = backend_of(folder, **settings)
    worker = backend.load(backend.plan())
    none = SamplingParams(max_tokens=0)
    new = [
        SequenceInit(request_id=str(i), prompt_ids=ids, sampling=none, produces=kind, pair_start=start)
        for i, (ids, start) in enumerate(zip(texts, pair_starts or [0] * len(texts), strict=True))
    ]
    chunks = [
        Chunk(
            request_id=each.request_id, start=0, length=len(each.prompt_ids), block_table=[0], phase=ChunkPhase.PREFILL
        )
        for each in new
    ]
    brought = worker.run(Step(step_id=0, chunks=chunks, new=new, retired=[each.request_id for each in new])).results
    assert [result.request_id for result in brought] == [each.request_id for each in new]
    assert worker._sequences == {}
    return torch.tensor([result.pooled.values for result in brought])


def states(model, ids, **inputs):
    with torch.inference_mode():
        return model(torch.tensor([ids]), **inputs).last_hidden_state[0]


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_those_of_transformers(kind, tmp_path):
    model = tiny_encoder(kind)
    save_encoder(model, tmp_path)
    want = torch.stack([F.normalize(states(model, ids).mean(0), dim=0) for ids in TEXTS])
    torch.testing.assert_close(results(tmp_path, TEXTS), want, atol=1e-5, rtol=0)


def test_the_second_text_of_a_pair_has_tokens_of_its_own_type(tmp_path):
    model = tiny_encoder("Bert")
    save_encoder(model, tmp_path)
    sentence_files(tmp_path, "cls_token", normalize=False)
    types = torch.tensor([[0, 0, 1, 1, 1]])
    want = states(model, TEXTS[1], token_type_ids=types)[0]
    got = results(tmp_path, [TEXTS[1], TEXTS[1]], pair_starts=[2, 0])
    torch.testing.assert_close(got[0], want, atol=1e-5, rtol=0)
    assert not torch.allclose(got[1], want, atol=1e-2)


@pytest.mark.parametrize("score", ["Sigmoid", "Identity"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_cross_encoder_scores_as_its_class_does(kind, score, tmp_path):
    model = tiny_encoder(kind, "ForSequenceClassification", num_labels=1)
    save_encoder(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["sentence_transformers"] = {"activation_fn": f"torch.nn.modules.activation.{score}"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with torch.inference_mode():
        want = torch.stack([model(torch.tensor([ids])).logits[0] for ids in TEXTS])
    got = results(tmp_path, TEXTS, SCORES)
    torch.testing.assert_close(got, want.sigmoid() if score == "Sigmoid" else want, atol=1e-5, rtol=0)


def test_its_body_makes_vectors_too(tmp_path):
    model = tiny_encoder("Roberta", "ForSequenceClassification", num_labels=1)
    save_encoder(model, tmp_path)
    want = F.normalize(states(model.roberta, TEXTS[2]).mean(0), dim=0)
    torch.testing.assert_close(results(tmp_path, [TEXTS[2]])[0], want, atol=1e-5, rtol=0)


def test_checkpoints_with_a_language_models_head_and_old_names_are_read(tmp_path):
    model = tiny_encoder("Bert", "ForMaskedLM")
    save_encoder(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in tensors.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()}
    assert len(old.keys() - tensors.keys()) > 8
    save_file(old | {"bert.embeddings.position_ids": torch.arange(48)}, tmp_path / "model.safetensors")
    want = F.normalize(states(model.bert, TEXTS[1]).mean(0), dim=0)
    torch.testing.assert_close(results(tmp_path, [TEXTS[1]])[0], want, atol=1e-5, rtol=0)


def test_random_weights_need_no_files(tmp_path):
    save_encoder(tiny_encoder("Bert"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    first, second = (results(tmp_path, TEXTS[:2], load_format="dummy") for _ in range(2))
    assert torch.equal(first, second) and not torch.allclose(first[0], first[1])


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            lambda found: found.pop("encoder.layer.1.output.dense.bias"),
            "lacks tensors: encoder.layer.1.output.dense.bias",
        ),
        (lambda found: found.update(odd=torch.ones(2)), "holds unknown tensors: odd"),
        (
            lambda found: found.update({"embeddings.LayerNorm.bias": torch.ones(5)}),
            r"embeddings.LayerNorm.bias is \[5\], not \[32\]",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(tensors, message, tmp_path):
    save_encoder(tiny_encoder("Bert"), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    tensors(found)
    save_file(found, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=message):
        results(tmp_path, TEXTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key' is not implemented"),
        ({"is_decoder": True}, "is_decoder=True is not implemented"),
        ({"hidden_act": "silu"}, "hidden_act='silu' is not implemented"),
        ({"num_attention_heads": 5}, "5 attention heads cannot share the hidden size 32"),
        ({"sbert_ce_default_activation_function": "torch.nn.Softmax"}, "the activation Softmax of scores"),
    ],
)
def test_what_is_not_computed_is_refused(change, message, tmp_path):
    save_encoder(tiny_encoder("Bert"), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        read_description(resolve_model(str(tmp_path)))


def test_texts_may_be_as_long_as_there_are_positions_and_a_step_holds_the_longest(tmp_path):
    save_encoder(tiny_encoder("Roberta"), tmp_path)
    backend = backend_of(tmp_path, max_step_tokens=8)
    plan = backend.plan()
    assert (plan.context, plan.block_size, backend.limits.tokens) == (46, 46, 46), "two positions are the padding's"
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    sentence_files(tmp_path)
    assert backend_of(tmp_path).plan().context == 20
    more = {"allow_long_max_model_len": True}
    assert backend_of(tmp_path, max_model_len=30, **more).plan().context == 30
    with pytest.raises(ModelError, match="--max-model-len 47 is more than the 46 positions"):
        backend_of(tmp_path, max_model_len=47, **more)


@pytest.mark.parametrize(("name", "value"), [("kv_blocks", 9), ("kv_host_gib", 1.0)])
def test_settings_of_a_kv_cache_are_refused(name, value, tmp_path):
    save_encoder(tiny_encoder("Bert"), tmp_path)
    flag = name.replace("_", "-")
    with pytest.raises(ModelError, match=f"--{flag} is set, but an encoder keeps no KV"):
        backend_of(tmp_path, **{name: value}).plan()


def test_a_model_is_served_for_what_it_is_made_for(tmp_path, tiny_model):
    embedder = read_description(resolve_model(str(save_encoder(tiny_encoder("Bert"), tmp_path / "e"))))
    scorer = tiny_encoder("Bert", "ForSequenceClassification", num_labels=1)
    reranker = read_description(resolve_model(str(save_encoder(scorer, tmp_path / "r"))))
    classifier = tiny_encoder("Bert", "ForSequenceClassification", num_labels=3)
    three = read_description(resolve_model(str(save_encoder(classifier, tmp_path / "c"))))
    decoder = read_description(resolve_model(str(tiny_model("llama")[1])))
    assert embedder.pooling == PoolingRules(kind="mean")
    assert kinds_of(Settings(), embedder) == {VECTOR}
    assert kinds_of(Settings(), reranker) == {SCORES}
    assert kinds_of(Settings(task=["embed", "rerank"]), reranker) == {VECTOR, SCORES}
    assert kinds_of(Settings(), decoder) == {OutputKind.TOKENS}
    assert kinds_of(Settings(task=["generate", "embed"]), decoder) == {OutputKind.TOKENS, VECTOR}
    for task, config, why in (
        ("generate", embedder, "generate does not fit a bert model: it is an encoder"),
        ("rerank", embedder, "rerank does not fit a bert model: that takes a cross-encoder"),
        ("rerank", decoder, "rerank does not fit a llama model"),
    ):
        with pytest.raises(ModelError, match=why):
            kinds_of(Settings(task=[task]), config)
    with pytest.raises(ModelError, match="classification head has 1 label"):
        kinds_of(Settings(), three)
