"""A split GGUF model is the model that it was split from: weights, sizes, names; a cut part is refused before it is read."""

import os

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine.cpu.formats import Arithmetic, packed_bytes
from engine.cpu.packed_weights import assemble_packed
from engine.fingerprint import build, fingerprints
from engine.loading import load
from engine.loading.stored import stored_kinds
from engine.models.registry import read_config
from loadtest.simulate.shapes.gguf_file import read_gguf_file
from tests.engine.loading.test_loading import loaded, logits, write_gguf
from tests.engine.test_fingerprint import Chosen

EXACT = Arithmetic("exact", "for the test")


@pytest.fixture(
    params=[{"split_max_tensors": 5}, {"split_max_size": 30_000, "small_first_shard": True}], ids=["count", "size"]
)
def both(request, tiny_model, tmp_path):
    """One file, and the parts of the same model."""
    model, _ = tiny_model("llama")

    def factors(writer):
        writer.add_tensor("rope_freqs.weight", torch.linspace(1, 8, 8).numpy())

    whole = write_gguf(tmp_path / "m.gguf", model, Kind.Q8_0, finish=factors)
    write_gguf(tmp_path / "m.gguf", model, Kind.Q8_0, finish=factors, **request.param)
    parts = sorted(tmp_path.glob("m-*-of-*.gguf"))
    assert len(parts) > 3
    return whole, parts


def test_it_computes_the_same_whichever_part_is_named(both):
    whole, parts = both
    expected = logits(*loaded(whole))
    for part in (parts[0], parts[-1]):
        assert torch.equal(logits(*loaded(part)), expected)


def test_the_kernels_get_the_same_and_plans_count_the_same(both):
    (one, config), (split, _) = (
        (resolve_model(str(path)), read_config(resolve_model(str(path)))) for path in (both[0], both[1][1])
    )
    assert stored_kinds(split, config, "auto") == stored_kinds(one, config, "auto") != {}
    assert packed_bytes(split, config, "auto") == packed_bytes(one, config, "auto")
    ours, theirs = (load(source, config, "auto", assemble_packed) for source in (split, one))
    for mine, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(mine.q.records, other.q.records) and torch.equal(mine.down.records, other.down.records)
    assert torch.equal(ours.embedding.records, theirs.embedding.records)


def test_its_kv_has_the_same_name_and_its_texts_are_all_read(both):
    names = []
    for path in (both[0], both[1][0], both[1][2]):
        source = resolve_model(str(path))
        names.append(fingerprints(source, read_config(source), Settings(), Chosen(EXACT.kv_format, build(EXACT.name))))
    assert names[0].kv == names[1].kv == names[2].kv
    assert names[1] == names[2]
    first = both[1][0]
    content = first.read_bytes()
    first.write_bytes(
        content.replace(b"tokenizer.ggml.eos_token_id\x04\0\0\0\x02", b"tokenizer.ggml.eos_token_id\x04\0\0\0\x03")
    )
    source = resolve_model(str(first))
    changed = fingerprints(source, read_config(source), Settings(), Chosen(EXACT.kv_format, build(EXACT.name)))
    assert changed.kv == names[0].kv and changed.answer != names[1].answer


def test_a_simulation_sees_the_same_shape(both):
    whole, parts = (read_gguf_file(path) for path in (both[0], both[1][1]))
    assert (parts.name, parts.layers, parts.vocab_size, parts.hidden_size) == ("m", 3, 320, 64)
    assert parts.weight_bits == pytest.approx(whole.weight_bits, rel=0.02)  # what lies between tensors differs
    assert parts.head_bits == pytest.approx(whole.head_bits, rel=0.02)


@pytest.mark.parametrize("which", [1, -1])
def test_a_part_that_is_cut_is_refused_before_any_weight_is_read(both, which):
    part = both[1][which]
    os.truncate(part, part.stat().st_size - 64)
    source = resolve_model(str(both[1][0]))
    for use in (lambda: stored_kinds(source, read_config(source), "auto"), lambda: loaded(both[1][0])):
        with pytest.raises(ModelError, match=rf"{part.name} is (cut off within|damaged: tensor .* beyond the end)"):
            use()
