"""Which family a model is of: known by its name in the file, and no name has two."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.model.source import ModelError
from engine.models import registry


def header(architecture: str) -> SimpleNamespace:
    return SimpleNamespace(path=Path("/models/small.gguf"), metadata={"general.architecture": architecture})


def test_two_families_of_one_gguf_name_are_a_defect(monkeypatch):
    llama = registry.known_families()["llama"]
    families = {"llama": llama, "other": replace(llama, name="other")}
    monkeypatch.setattr(registry, "known_families", lambda: families)
    with pytest.raises(ValueError, match="two families are named 'llama' in GGUF: llama, other"):
        registry.read_gguf_config(header("llama"))


def test_an_unknown_architecture_is_refused_with_those_that_are_known():
    with pytest.raises(ModelError, match=r"small.gguf: the architecture 'abacus' is not implemented; known: .*llama"):
        registry.read_gguf_config(header("abacus"))
