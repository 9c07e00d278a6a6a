"""Two real engines behind one server: the answers of one engine, and a rolling restart that nobody notices."""

import asyncio
import json
import os
from itertools import islice
from pathlib import Path

import httpx
import psutil
import pytest

from scheduler.types.block_hash import block_names, root_hash
from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

PROMPTS = [f"The {word} of the water wheel" for word in ("age", "size", "sound", "maker", "price", "shape")]
OPTIONS = ("--kv-blocks", "400", "--max-step-tokens", "256")


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kv")
    server = ServerProcess("--engines", "2", "--routing", "round-robin", "--kv-disk-path", str(folder), *OPTIONS)
    server.wait_until(lambda: all(card["state"] == "ready" for card in cards(server)))
    server.folder = folder
    yield server
    assert server.stop() == 0, "".join(server.output)


def cards(server):
    return httpx.get(f"{server.url}/v1/engines", timeout=30).json()["data"]


async def ask(client, server, prompt, **body):
    request = {"prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_eos": True, **body}
    answer = await client.post(f"{server.url}/v1/completions", json=request)
    assert answer.status_code == 200, answer.text
    return answer.json()


def asked_together(server, prompts, **body):
    async def together():
        async with httpx.AsyncClient(timeout=120) as client:
            return await asyncio.gather(*(ask(client, server, prompt, **body) for prompt in prompts))

    return asyncio.run(together())


def check_same(answer, expected):
    """The same choice; log probabilities may differ in their last bits, by the rows that were computed beside."""
    (choice,), (other,) = answer["choices"], expected["choices"]
    logprobs, others = choice.pop("logprobs"), other.pop("logprobs")
    assert choice == other
    if logprobs is not None:
        assert logprobs["tokens"] == others["tokens"]
        assert logprobs["token_logprobs"] == pytest.approx(others["token_logprobs"], abs=1e-4)
        for top, other_top in zip(logprobs["top_logprobs"], others["top_logprobs"], strict=True):
            assert top == pytest.approx(other_top, abs=1e-4)


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 7, "logprobs": 2}], ids=["greedy", "seeded"])
def test_answers_are_those_of_one_engine(pool, server, sampling):
    before = {card["id"]: steps(pool, card["id"]) for card in cards(pool)}
    several, one = (asked_together(each, PROMPTS, **sampling) for each in (pool, server))
    for answer, expected in zip(several, one, strict=True):
        check_same(answer, expected)
    fingerprints = {answer["system_fingerprint"] for answer in several}
    assert fingerprints == {card["fingerprint"] for card in cards(pool)} and len(fingerprints) == 1
    assert all(steps(pool, name) > count for name, count in before.items()), "both had their part"


def test_weights_are_in_memory_once(pool):
    if not hasattr(os, "memfd_create"):
        pytest.skip("this system has no memory without a name")
    engines = [child.pid for child in psutil.Process(pool.process.pid).children() if "--share" in child.cmdline()]
    maps = [line.split() for pid in engines for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    inodes = [entry[4] for entry in maps if any("headrace-weights" in word for word in entry)]
    assert len(engines) == len(inodes) == 2 and len(set(inodes)) == 1


def steps(server, engine):
    return server.metrics()[f'headrace_steps_total{{engine="{engine}"}}']


def test_a_rolling_restart_changes_no_answer(pool):
    prompts = PROMPTS[:2]
    expected = [answer["choices"] for answer in asked_together(pool, prompts)]

    async def body():
        async with httpx.AsyncClient(timeout=120) as client:
            for card in cards(pool):
                asked = await client.post(f"{pool.url}/v1/engines/{card['id']}/restart")
                assert asked.json()["restarting"]
            rounds = 0
            while any(card["restarting"] for card in cards(pool)):
                answers = await asyncio.gather(*(ask(client, pool, prompt) for prompt in prompts))
                assert [answer["choices"] for answer in answers] == expected
                rounds += 1
            return rounds

    assert asyncio.run(body()) >= 2
    metrics = pool.metrics()
    assert [metrics[f'headrace_engine_restarts_total{{engine="engine-{number}"}}'] for number in (0, 1)] == [1, 1]
    assert all(card["state"] == "ready" for card in cards(pool))


def test_what_an_engine_tells_of_its_blocks_has_the_names_that_anybody_can_compute(pool):
    (answer,) = asked_together(pool, [PROMPTS[0] * 20], max_tokens=1)
    ids = httpx.post(f"{pool.url}/tokenize", json={"prompt": PROMPTS[0] * 20}, timeout=30).json()["tokens"]
    found = []
    for card in cards(pool):
        with httpx.stream("GET", f"{pool.url}/v1/engines/{card['id']}/blocks", timeout=30) as told:
            line = json.loads(next(told.iter_lines()))
        assert line["anew"] and line["block_size"] == 32
        names = block_names(root_hash(line["fingerprint"]), ids, line["block_size"])
        known = {block["name"]: block for block in line["stored"] if block["tier"] == "device"}
        if names[0].hex() in known:
            found.append(card["id"])
            assert [known[name.hex()]["parent"] for name in names[1:]] == [name.hex() for name in names[:-1]]
            assert {known[name.hex()]["tokens"] for name in names} == {32}
    assert len(found) == 1 and answer["usage"]["prompt_tokens"] == len(ids)


def prompts_of(drawn):
    """The requests of whose prompts the steps of a map computed something."""
    return {name for step in drawn["steps"] for name, _, _ in step["prompts"]}


def test_who_watches_sees_which_engine_has_a_request(pool):
    with httpx.stream("GET", f"{pool.url}/v1/map", timeout=60) as told:
        lines = (json.loads(line) for line in told.iter_lines())
        first = [next(lines) for _ in range(2)]
        assert [(line["engine"], line["state"]) for line in first] == [("engine-0", "ready"), ("engine-1", "ready")]
        (answer,) = asked_together(pool, ["A wheel that nobody has seen turn"], max_tokens=16)
        maps = (line["map"] for line in islice(lines, 500) if line["map"])
        drawn = next(each for each in maps if f"{answer['id'].partition('-')[2][:8]}-0" in prompts_of(each))
    assert drawn["cells"]["blocks"] == 400 and sum(drawn["cells"]["runs"][::6]) == 400
    assert drawn["used"] + drawn["cached"] + drawn["free"] == 400
    assert {tier["name"] for tier in drawn["tiers"]} == {"disk"}


def test_engines_share_one_folder(pool):
    assert (pool.folder / "headrace.lock").exists() and not (pool.folder / "engine-0").exists()
