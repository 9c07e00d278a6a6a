"""Models the tests share. Each is built once a session, from nothing but installed packages.

What takes seconds to import is imported where it is used: the process that hands out the tests to others needs none of it.
"""

import gc
import os
import sys
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import transformers

    from configs.model.source import ModelSource
    from engine.cpu.decoder import Decoder
    from server.text.tokenizer import Tokenizer
    from tests import tiny_models

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in engine/start.py, before anything imports torch

# Triton's interpreter, which needs no GPU: to be chosen before triton is imported, and transformers imports it.
# `pytest -m gpu` is for compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "0" if ("-m", "gpu") in pairwise(sys.argv) else "1")

gc.disable()  # until all tests are collected: looking through what is only ever added to takes a quarter of the time


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Tests begin. What all of them need stays out of the way of collections until the last has ended."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)
    if os.environ["TRITON_INTERPRET"] == "1" and "triton.language" in sys.modules:
        from tests.interpreter import quicken

        quicken()
    if "httpx" in sys.modules:
        from httpx._transports import default

        # Each client reads all the certificates there are, for which no test has a use: 50 ms, and many ask by `httpx.get`.
        default.create_ssl_context = cache(default.create_ssl_context)


def pytest_sessionfinish() -> None:
    """What was kept out of the way is let go as ever: libraries look for what is left of theirs."""
    gc.unfreeze()


# A suite that passed passes again: examples follow from the test alone, and none is judged by how busy the machine is.
# HYPOTHESIS_PROFILE=random or --hypothesis-profile=random draws new ones, and keeps those that fail.
# tests/gpu does without it: a rented machine seldom has it.
if find_spec("hypothesis"):
    import hypothesis

    hypothesis.settings.register_profile("fixed", derandomize=True, deadline=None, max_examples=30)
    hypothesis.settings.register_profile("random", derandomize=False, deadline=None, print_blob=True)
    hypothesis.settings.register_profile("long", derandomize=False, deadline=None, print_blob=True, max_examples=1000)
    hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))


@pytest.fixture(scope="session")
def smollm2_source() -> "ModelSource":
    """The embedded model's file."""
    from configs.model.source import resolve_model

    return resolve_model(None)


@pytest.fixture(scope="session")
def smollm2_decoder(smollm2_source: "ModelSource") -> "Decoder":
    """The embedded model, loaded by us."""
    from engine.cpu.decoder import Decoder
    from engine.cpu.weights import load_weights
    from engine.models.registry import read_config

    config = read_config(smollm2_source)
    return Decoder(config, load_weights(smollm2_source, config, "auto"))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_source: "ModelSource") -> "Tokenizer":
    """The embedded model's tokenizer, as the server loads it."""
    from server.text import load_tokenizer

    return load_tokenizer(smollm2_source.path)


@pytest.fixture(scope="session")
def smollm2_reference(smollm2_source: "ModelSource") -> "transformers.PreTrainedModel":
    """The embedded model, loaded by transformers in fp32 with eager attention. Takes several seconds."""
    import gguf
    import torch
    import transformers

    path = smollm2_source.path
    with pytest.MonkeyPatch.context() as patch:  # it reads the header twice, and asks for the same names 400 times
        for name in ("GGUFReader", "get_tensor_name_map"):
            patch.setattr(gguf, name, cache(getattr(gguf, name)))
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
        )
    return model.eval()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> "tiny_models.Saver":
    """A recipe's name to the transformers model and the folder it is saved in."""
    from tests import tiny_models

    known: dict[str, tuple[transformers.PreTrainedModel, Path]] = {}

    def get(name: str) -> "tuple[transformers.PreTrainedModel, Path]":
        if name not in known:
            model = tiny_models.build(name)
            known[name] = model, tiny_models.save(model, tmp_path_factory.mktemp(name))
        return known[name]

    return get


def pytest_make_parametrize_id(val: object) -> str | None:
    """Of a test with long bytes: their length. They are no name, and another with each run if they hold a time."""
    return f"{len(val)} bytes" if isinstance(val, bytes) and len(val) > 16 else None


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    """What a test printed or logged may hold halves of characters; reports travel between processes as UTF-8."""
    outcome = yield
    report = outcome.get_result()
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]


def pytest_terminal_summary(terminalreporter):
    """Print what tests told by `record_property("told", text)`, which may have run in other processes."""
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    for report in reports:
        if getattr(report, "when", None) == "call":
            for text in (text for name, text in report.user_properties if name == "told"):
                terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def row_scaled_products() -> None:
    """For tests of products of 8-bit floats with a scale for each row: torch 2.11 lacks them on a CPU."""
    import torch

    one, scales = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(one, one.t(), scales, scales.t(), out_dtype=torch.bfloat16)
    except RuntimeError as error:
        pytest.skip(f"torch {torch.__version__} has no such product on a CPU: {error}")
