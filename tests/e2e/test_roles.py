"""A prefill and a decode engine behind one server: the answers of one engine, whatever happens to either of the two."""

import asyncio
import json

import httpx
import psutil
import pytest

from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

LONG = " ".join(f"The {number}th wheel of the old mill turns." for number in range(40))  # some 450 tokens
CASES = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 1.0, "seed": 7, "logprobs": 2},
    "two choices": {"temperature": 1.0, "seed": 3, "n": 2, "prompt_logprobs": 1},
    "penalties": {"temperature": 0, "presence_penalty": 0.5, "frequency_penalty": 0.5, "repetition_penalty": 1.2},
    "stopped": {"temperature": 0, "stop": ["the", "\n"]},
}


@pytest.fixture(scope="module")
def apart():
    server = ServerProcess(
        "--roles",
        "prefill:1,decode:1",
        "--kv-host-gib",
        "0.25",
        "--kv-blocks",
        "400",
        "--max-step-tokens",
        "256",
        # No first token comes in time, and all others do: where two engines decode and enough was seen, roles switch.
        "--ttft-slo-ms",
        "1",
        "--decode-slo-ms",
        "60000",
    )
    ready(server)
    yield server
    assert server.stop() == 0, "".join(server.output)


def cards(server):
    return {card["id"]: card for card in httpx.get(f"{server.url}/v1/engines", timeout=30).json()["data"]}


def ready(server):
    server.wait_until(lambda: all(card["state"] == "ready" for card in cards(server).values()))


def request_of(number=0, **body):
    return {"prompt": f"{number}. {LONG}", "max_tokens": 24, "ignore_eos": True, **body}


def asked(server, **body):
    answer = httpx.post(f"{server.url}/v1/completions", json=request_of(**body), timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()


def about(value):
    """The same but for the last bits of numbers, which depend on how many rows a step has."""
    if isinstance(value, float):
        return pytest.approx(value, abs=1e-3)
    if isinstance(value, dict):
        return {name: about(part) for name, part in value.items()}
    return [about(part) for part in value] if isinstance(value, list) else value


def hand_overs(server, *outcomes):
    metrics = server.metrics()
    return sum(metrics[f'headrace_hand_overs_total{{outcome="{outcome}"}}'] for outcome in outcomes)


async def streamed(server, disturb, **body):
    """The text of a stream; `disturb` is called with the number of its events so far."""
    text, seen = "", 0
    body = request_of(**body, stream=True, stream_options={"include_usage": True})
    async with (
        httpx.AsyncClient(timeout=120) as client,
        client.stream("POST", f"{server.url}/v1/completions", json=body) as answer,
    ):
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += "".join(choice["text"] for choice in event["choices"])
            if event.get("usage"):
                assert event["usage"]["completion_tokens"] == body["max_tokens"]
            seen += 1
            await asyncio.to_thread(disturb, seen)
    return text


def kill(server, name):
    """kill -9 of the engine of this name."""
    for child in psutil.Process(server.process.pid).children():
        if f'"engine":"{name}"' in " ".join(child.cmdline()).replace(" ", ""):
            child.kill()
            return
    raise AssertionError(f"no process of {name}")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[pytest.mark.long] * (case == "two choices")) for case in CASES]
)
def test_answers_are_those_of_one_engine(apart, server, case):
    before = hand_overs(apart, "loaded", "computed")
    number = list(CASES).index(case)
    split, one = (asked(each, number=number, **CASES[case]) for each in (apart, server))
    assert split["choices"] == about(one["choices"]) and split["usage"] == one["usage"]
    assert hand_overs(apart, "loaded", "computed") == before + CASES[case].get("n", 1)


def test_kv_was_loaded_and_not_computed_again(apart):
    tokens = apart.metrics()
    assert hand_overs(apart, "loaded") > 0
    assert tokens['headrace_hand_over_tokens_total{how="loaded"}'] > 0


def test_short_prompts_are_not_split(apart, server):
    """It is decided by what is measured, so on a busy machine one may be."""
    before, texts = hand_overs(apart, "loaded", "computed", "stays", "waits"), []
    for number in range(4):
        body = {"prompt": f"Once {number}", "max_tokens": 4, "temperature": 0}
        answers = [httpx.post(f"{each.url}/v1/completions", json=body, timeout=60).json() for each in (apart, server)]
        texts.append([answer["choices"][0]["text"] for answer in answers])
    assert all(one == other for one, other in texts)
    assert hand_overs(apart, "loaded", "computed", "stays", "waits") - before < len(texts)


@pytest.mark.parametrize("engine", ["engine-1", "engine-0"])
def test_a_stream_goes_on_when_either_engine_is_killed(apart, server, engine):
    body = {"number": 20, "temperature": 1.0, "seed": 5, "max_tokens": 48}
    expected = asked(server, **body)["choices"][0]["text"]
    killed = []

    def disturb(seen):
        if seen == 8 and not killed:
            killed.append(engine)
            kill(apart, engine)

    assert asyncio.run(streamed(apart, disturb, **body)) == expected and killed
    ready(apart)


def test_roles_change_in_the_middle_of_a_stream(apart, server):
    body = {"number": 30, "temperature": 0, "max_tokens": 48}
    expected = asked(server, **body)["choices"][0]["text"]

    def disturb(seen):
        if seen == 6:
            for name, role in (("engine-1", "mixed"), ("engine-0", "decode")):
                changed = httpx.post(f"{apart.url}/v1/engines/{name}/role", json={"role": role}, timeout=30)
                assert changed.json()["role"] == role

    assert asyncio.run(streamed(apart, disturb, **body)) == expected
    assert {name: card["role"] for name, card in cards(apart).items()} == {"engine-0": "decode", "engine-1": "mixed"}
    before = hand_overs(apart, "loaded", "computed", "stays")
    again = asked(apart, number=31, temperature=0)
    assert again["choices"] == asked(server, number=31, temperature=0)["choices"]
    assert hand_overs(apart, "loaded", "computed", "stays") == before, "nobody computes for others now"


@pytest.mark.long
def test_an_idle_engine_changes_its_role_when_a_phase_falls_behind(apart, server):
    """The last one here, where `engine-1` is mixed: all streams are there, and `engine-0` can be spared."""
    for name, role in (("engine-1", "mixed"), ("engine-0", "decode")):
        assert httpx.post(f"{apart.url}/v1/engines/{name}/role", json={"role": role}, timeout=30).status_code == 200
    body = {"number": 40, "temperature": 0, "max_tokens": 160}
    expected = asked(server, **body)["choices"][0]["text"]

    def switched():
        metrics = apart.metrics()
        return {name: value for name, value in metrics.items() if "role_switches_total" in name and value}

    def disturb(seen):
        if seen == 4:
            asked(apart, number=41, n=20, max_tokens=2, seed=1)  # as many as it takes to be sure
            assert apart.wait_until(switched) == {
                'headrace_role_switches_total{behind="prefill",engine="engine-0",role="prefill"}': 1.0
            }

    assert asyncio.run(streamed(apart, disturb, **body)) == expected
    assert {name: card["role"] for name, card in cards(apart).items()} == {"engine-0": "prefill", "engine-1": "mixed"}
    assert any("engine-0: decode -> prefill, as prefill is behind: 0%" in line for line in apart.output)
    before = hand_overs(apart, "loaded", "computed", "stays", "waits")
    assert asked(apart, number=42, temperature=0)["choices"] == asked(server, number=42, temperature=0)["choices"]
    assert hand_overs(apart, "loaded", "computed", "stays", "waits") <= before + 1
