"""The GPU's worker behind a real server, its kernels interpreted over CPU tensors: alone, and split over two processes."""

import contextlib
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests import tiny_models
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

WORDS = 320
SHAPE = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
PREFIX = [5 + 3 * i for i in range(20)]
PROMPTS = [[*PREFIX, 7 * i + 3, i + 40] for i in range(2)] + [[9, 8, 7]]
SAMPLED = [
    {},
    {"top_p": 0.8, "logprobs": 3},
    {"presence_penalty": 1.5, "repetition_penalty": 1.2},
    {"bad_words": ["nn"], "logit_bias": {"110": 4}},
    {"prompt_logprobs": 1, "logprobs": 2, "echo": True},
]
FLAGS = ("--block-size", "16", "--kv-blocks", "30", "--max-step-tokens", "16")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny")
    tiny_models.save(tiny_models.made(tiny_models.Tiny("Llama", SHAPE), 3), path)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = Tokenizer(
        BPE({**{letter: i for i, letter in enumerate(letters)}, **{f"w{i}": i for i in range(256, WORDS)}}, [])
    )
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    words.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def serve(folder):
    """Start a server of the tiny model; it is stopped at the end."""
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(pytest.MonkeyPatch.context())
        context.setenv("TRITON_INTERPRET", "1")

        def start(*flags, wait=True):
            server = ServerProcess(str(folder), *FLAGS, *flags, wait=wait)
            stack.callback(server.stop)
            return server

        yield start


@pytest.fixture(scope="module")
def alone(serve):
    return serve("--device", "cuda")


@pytest.fixture(scope="module")
def pair(serve):
    return serve("--device", "cuda", "--tensor-parallel", "2")


def ask(server, prompt, **options):
    """One choice of a completion."""
    body = {"prompt": prompt, "max_tokens": 5, "temperature": 0, "ignore_eos": True} | options
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def answers(server):
    """Texts of all prompts, asked for at once."""
    with ThreadPoolExecutor(len(PROMPTS)) as threads:
        return list(threads.map(lambda prompt: ask(server, prompt)["text"], PROMPTS))


@pytest.fixture(scope="module")
def exact(folder):
    """What the CPU's exact path says."""
    server = ServerProcess(str(folder), *FLAGS, "--device", "cpu", "--cpu-precision", "exact")
    try:
        texts = answers(server)
    finally:
        assert server.stop() == 0
    assert len(set(texts)) == len(PROMPTS)
    return texts


def ranks(server):
    """Processes of the other ranks."""
    return [child for child in server.engine.children() if "engine.rank" in child.cmdline()]


def private_folders(processes):
    return [Path(each.cmdline()[each.cmdline().index("--folder") + 1]) for each in processes]


@pytest.mark.parametrize("ranks", ["alone", pytest.param("pair", marks=pytest.mark.long)])
def test_the_gpu_path_says_what_the_cpu_says(ranks, exact, request):
    server = request.getfixturevalue(ranks)
    assert answers(server) == exact
    assert answers(server) == exact, "from the cache"
    assert server.metrics()["headrace_prefix_hit_tokens_total"] > 0


@pytest.mark.long
@pytest.mark.parametrize("options", SAMPLED)
def test_two_ranks_draw_what_one_draws(alone, pair, options):
    """Each rank draws for itself, from the same logits: on the device, and for some requests on the host."""
    one, two = (ask(server, PROMPTS[0], temperature=1.0, seed=5, **options) for server in (alone, pair))
    assert two["text"] == one["text"]
    for name in ("token_logprobs", "tokens"):
        assert (two["logprobs"] or {}).get(name) == pytest.approx((one["logprobs"] or {}).get(name), abs=1e-3)


@pytest.mark.long
@pytest.mark.parametrize("victim", ["rank", "engine"])
def test_ranks_end_together_and_a_new_engine_serves(serve, exact, victim, request):
    """The last test of the pair, which is stopped here."""
    server = (
        request.getfixturevalue("pair") if victim == "rank" else serve("--device", "cuda", "--tensor-parallel", "2")
    )
    engine, others = server.engine, ranks(server)
    folders = private_folders(others)
    assert [folder.exists() for folder in folders] == [True]
    (others[0] if victim == "rank" else engine).send_signal(signal.SIGKILL)
    assert psutil.wait_procs([engine, *others], timeout=20)[1] == []
    for status in (503, 200):
        server.wait_until(lambda status=status: httpx.get(f"{server.url}/ready").status_code == status)
    assert server.engine.pid != engine.pid
    assert answers(server) == exact
    assert not folders[0].exists()

    others, said = ranks(server), len(server.output)
    folders = private_folders(others)
    assert server.stop() == 0, "an orderly end"
    assert psutil.wait_procs(others, timeout=10)[1] == []
    assert not folders[0].exists()
    assert not re.search("fatal|traceback|warning", "".join(server.output[said:]), re.IGNORECASE)


@pytest.mark.long
def test_what_cannot_be_split_is_refused_with_a_sentence(serve):
    server = serve("--device", "cuda", "--tensor-parallel", "4", wait=False)
    server.wait_for(r"--tensor-parallel 4: 2 attention heads cannot be split over 4 ranks evenly")
    assert server.process.wait(60) != 0
