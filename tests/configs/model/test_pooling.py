"""sentence-transformers' files: what they say of vectors, and what of it is refused."""

import json

import pytest

from configs.model.fields import Fields
from configs.model.pooling import UNSTATED, PoolingRules, gguf_pooling, read_pooling
from configs.model.source import ModelError
from tests.tiny_encoders import sentence_files


def test_a_folder_without_them_states_nothing(tmp_path):
    assert read_pooling(tmp_path) is UNSTATED


def test_all_that_they_say(tmp_path):
    sentence_files(
        tmp_path, "weightedmean_tokens".removesuffix("_tokens"), prompts={"query": "q: "}, default_prompt_name="query"
    )
    (tmp_path / "sentence_roberta_config.json").write_text('{"max_seq_length": 77, "do_lower_case": false}')
    assert read_pooling(tmp_path) == PoolingRules(
        kind="weightedmean",
        normalize=True,
        stated=True,
        prompts={"query": "q: "},
        default_prompt="query",
        max_length=77,
    )


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("cls_token", "cls"),
        ("max_tokens", "max"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("lasttoken", "lasttoken"),
    ],
)
def test_every_mode_by_its_name(mode, kind, tmp_path):
    sentence_files(tmp_path, mode, normalize=False)
    rules = read_pooling(tmp_path)
    assert (rules.kind, rules.normalize) == (kind, False)


def test_the_newer_form_of_the_mode(tmp_path):
    sentence_files(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    assert read_pooling(tmp_path).kind == "cls"


@pytest.mark.parametrize(
    ("pooling", "message"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, r"\['cls_token', 'mean_tokens'\]"),
        ({}, r"a pooling of \[\] is not implemented"),
        ({"pooling_mode_mean_tokens": True, "include_prompt": False}, "include_prompt=false"),
    ],
)
def test_other_poolings_are_refused(pooling, message, tmp_path):
    sentence_files(tmp_path)
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(ModelError, match=message):
        read_pooling(tmp_path)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({}, "does not hold a JSON array"),
        ([], "the first module must be a Transformer"),
        ([{"type": "x.Transformer"}], "each module needs a type and a path"),
        ([{"type": "x.Transformer", "path": ""}], "a Pooling must follow"),
        (
            [{"type": f"x.{kind}", "path": ""} for kind in ("Transformer", "Pooling", "Dense")],
            r"the modules \['Dense'\] are not implemented",
        ),
        ([{"type": "x.Transformer", "path": ""}, {"type": "x.Pooling", "path": "../up"}], "outside the model's"),
    ],
)
def test_other_modules_are_refused(modules, message, tmp_path):
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ModelError, match=message):
        read_pooling(tmp_path)


def test_a_gguf_file_states_it_by_a_number():
    assert gguf_pooling(Fields({}, "x.gguf")) is UNSTATED
    assert gguf_pooling(Fields({"pooling_type": 3}, "x.gguf")) == PoolingRules(kind="lasttoken", stated=True)
