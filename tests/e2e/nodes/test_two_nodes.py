"""Engines on two nodes of a real Ray cluster: where they are, whose KV they read, and that nothing is lost with a node.

Printed with `-s`: placement, hit, hand-over, death, and a table of the token-exact suite: its prompts in its ways, computed on one
node and decoded on the other. Greedy answers are held against transformers, token by token (`tests/engine/token_suite.py`).
"""

from functools import cache

import pytest

from tests.e2e.server_process import ServerProcess
from tests.engine.token_suite import FULL, is_greedy, suite_prompts

pytest.importorskip("ray", reason="Ray is not installed: pip install 'headrace[ray]'")
from loadtest.bench.ray_nodes import HEAD, OTHER, RayNodes
from tests.e2e.nodes.node_parts import (
    OUTCOMES,
    WAYS,
    Counts,
    Stream,
    ask,
    cards,
    compute_on,
    flags_of,
    health,
    known,
    node_of,
    post,
    prompts_computed,
    ready,
    run_beside,
    sample,
    third_of_tokens,
    tokens_of,
    until,
    whole,
    whole_blocks,
)

pytestmark = pytest.mark.processes

COLUMNS = (
    "way",
    "",
    "prompts",
    "equal",
    "handed over",
    "KV loaded",
    "tokens",
    "preempted",
    "cached",
    "replayed",
    "pause",
)
ONE_END = ["length", "data: [DONE]"]  # what tells a client of its stream's end
PROMPT = [3000 + i for i in range(300)]  # nine blocks of 32, and a rest
LONG = " ".join(f"The {number}th wheel of the old mill turns." for number in range(40))


@pytest.fixture(scope="module")
def nodes():
    made = RayNodes()
    yield made
    made.close()


class SpreadServers:
    """The one server that there is at a time, as its engines take both nodes.

    A fixture with parameters would start another one for each test.
    """

    def __init__(self, nodes):
        self._address = nodes.address
        self._flags, self._served = (), None

    def of(self, *flags):
        """One with these flags, its engines ready; the one before ends if it has others."""
        if self._served is None or flags != self._flags:
            self.stop()
            exact = ("--cpu-precision", "exact")  # fp32, as transformers computes here
            common = ("--ray", self._address, "--kv-host-gib", "0.5", "--http-processes", "2")
            self._flags, self._served = flags, ServerProcess(*common, *exact, *flags)
        ready(self._served)
        return self._served

    def stop(self):
        served, self._served = self._served, None
        assert served is None or served.stop() == 0, "".join(served.output)


@pytest.fixture(scope="module")
def servers(nodes):
    made = SpreadServers(nodes)
    yield made
    made.stop()


@pytest.fixture
def spread(servers):
    """Two mixed engines."""
    return servers.of("--engines", "2", "--kv-blocks", "400", "--max-step-tokens", "256")


@pytest.fixture(scope="module")
def prompts(smollm2_tokenizer):
    """Those of the token-exact suite, all of them."""
    return suite_prompts(smollm2_tokenizer, FULL)


@pytest.fixture(scope="module")
def greedy(smollm2_reference):
    """Says whether transformers would have answered this prompt with these tokens."""
    judged = cache(lambda prompt, output: is_greedy(smollm2_reference, list(prompt), list(output)))
    return lambda prompt, output: judged(tuple(prompt), tuple(output))


def line(*cells):
    """Of the table that is printed."""
    return f"{cells[0]:<18}" + "".join(f"{cell:>12}" for cell in cells[1:])


@pytest.fixture(scope="module")
def table():
    """Prints a row, below the names of the columns."""
    print("\n" + line(*COLUMNS))
    return lambda *cells: print(line(*cells))


@pytest.fixture(scope="module")
def answers():
    """By prompt, in the first way that brought one."""
    return {}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_engines_are_on_different_nodes(spread):
    places = {name: node_of(spread, name) for name in cards(spread)}
    print(f"\nplacement: {places}")
    assert sorted(places.values()) == [HEAD, OTHER]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_http_processes_keepers_and_who_may_command_ray_are_told(spread):
    """All requests of this file pass through two HTTP processes."""
    up = {name: value for name, value in spread.metrics().items() if name.startswith("headrace_http_process_up")}
    assert up == {f'headrace_http_process_up{{process="http-{number}"}}': 1 for number in range(2)}
    whole = {"state": "ready", "trouble": None, "restarts": 0}
    until(lambda: health(spread)["keepers"] == {HEAD: whole, OTHER: whole})
    assert health(spread)["keeper"] is None
    assert sample(spread, "headrace_keeper_up", node=HEAD) == sample(spread, "headrace_keeper_up", node=OTHER) == 1
    assert any("Ray takes commands of anybody who reaches its ports" in line for line in spread.output)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_one_node_computed_the_other_loads(spread, greedy):
    post(spread, "engine-1/drain")
    first = ask(spread, PROMPT)
    until(lambda: sample(spread, "headrace_kv_tier_saved_blocks_total", engine="engine-0", tier="host") >= 9)
    post(spread, "engine-1/undrain")
    post(spread, "engine-0/drain")
    until(lambda: known(spread, "engine-1") >= 9)
    second = ask(spread, PROMPT)
    post(spread, "engine-0/undrain")
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    loaded = sample(spread, "headrace_kv_tier_loaded_blocks_total", engine="engine-1", tier="peer")
    print(f"\nhit: {cached} of {len(PROMPT)} tokens, {loaded:g} blocks from the other node's keeper")
    assert tokens_of(first) == tokens_of(second) and greedy(PROMPT, tokens_of(first))
    assert (cached, loaded) == (288, 9)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_prompt_computed_on_one_node_is_decoded_on_the_other(spread, prompts, greedy, smollm2_tokenizer):
    def outcomes():
        return {
            how: sample(spread, "headrace_hand_overs_total", outcome=how) for how in ("loaded", "computed", "stays")
        }

    before = outcomes()
    post(spread, "engine-0/role", role="prefill")
    post(spread, "engine-1/role", role="decode")
    long = [[*smollm2_tokenizer.encode(f"{number}. {LONG}"), *ids] for number, ids in enumerate(prompts[::2])]
    answers = [tokens_of(ask(spread, prompt, max_tokens=24)) for prompt in long]
    seeded = {"prompt": f"99. {LONG}", "max_tokens": 24, "temperature": 1.0, "seed": 7}
    sampled = tokens_of(ask(spread, **seeded))
    after = outcomes()
    tokens = sample(spread, "headrace_hand_over_tokens_total", how="loaded")
    print(f"\nhand-over: {before} -> {after}, {tokens:g} tokens loaded from the other node")
    post(spread, "engine-1/role", role="mixed")
    post(spread, "engine-0/role", role="mixed")
    assert [greedy(prompt, answer) for prompt, answer in zip(long, answers, strict=True)] == [True] * len(long)
    assert sampled == tokens_of(ask(spread, **seeded)), "the same by one engine alone"
    assert after["loaded"] == before["loaded"] + len(long) + 1 and tokens > 0


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_node_that_dies_under_load_loses_no_request(spread, nodes, prompts, greedy):
    for death in range(2):
        whole(spread)
        (stays,) = (name for name in cards(spread) if node_of(spread, name) == HEAD)
        counts, streams = Counts(spread), [Stream(spread, prompt) for prompt in prompts[death::2]]
        lost, others = streams[::2], streams[1::2]
        post(spread, f"{stays}/drain")  # a router may find that all of them are sooner answered there
        for stream in lost:
            stream.start()
        until(lambda lost=lost: all(stream.tokens for stream in lost))
        post(spread, f"{stays}/undrain")
        for stream in others:
            stream.start()
        until(lambda streams=streams: all(len(stream.tokens) > 3 for stream in streams))
        killed = nodes.kill_other()
        for stream in streams:
            stream.join()
        replayed = counts.since("replayed_requests_total")
        print(
            f"\ndeath {death + 1}: {killed} processes killed, {len(streams)} streams whole, longest pause "
            f"{max(stream.pause for stream in streams):.2f} s, replayed {replayed}"
        )
        assert replayed > 0
        assert [stream.error for stream in streams] == [None] * len(streams)
        assert [len(stream.tokens) for stream in streams] == [96] * len(streams)
        assert [stream.ends for stream in streams] == [ONE_END] * len(streams)
        assert all(greedy(stream.prompt, stream.tokens) for stream in streams)
        until(lambda: set(health(spread)["keepers"]) == {HEAD})
        nodes.start_other()
    whole(spread)


BOTH_DIE = ("alone", "small chunks")  # ways in which either node is killed
FATES = [(way, dies) for way in WAYS for dies in ("", "decode", "prefill") if dies != "prefill" or way.name in BOTH_DIE]


def run_way(spread, nodes, way, dies, streams):
    """Each prompt is computed on one node and decoded on the other. One of them may be killed meanwhile, and comes back."""
    compute_on(spread, OTHER if dies == "prefill" else HEAD)
    if not dies:
        way.run(streams)
        return
    conditions = {
        "decode": lambda: third_of_tokens(streams),
        "prefill": lambda: prompts_computed(spread, OTHER, streams),
    }
    run_beside(way, streams, conditions[dies], lambda: (nodes.kill_other(), nodes.start_other()))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("way", "dies"), FATES, ids=lambda each: getattr(each, "name", each) or "hand-over")
def test_the_token_exact_suite(servers, nodes, prompts, greedy, table, answers, way, dies):
    """Whatever way the prompts take through two nodes, and whichever node is killed meanwhile."""
    spread = servers.of(*flags_of(way.server, prompts))
    whole(spread)
    counts, salt = Counts(spread), f"{way.name}, {dies}"  # nothing is known from the way before
    streams = [Stream(spread, prompt, FULL.output, cache_salt=salt) for prompt in way.prompts(prompts)]
    run_way(spread, nodes, way, dies, streams)
    assert [stream.error for stream in streams] == [None] * len(streams)
    equal = [answers.setdefault(tuple(each.prompt), each.tokens) == each.tokens for each in streams]
    moved = {outcome: counts.since("hand_overs_total", outcome=outcome) for outcome in OUTCOMES}
    loaded = counts.since("hand_over_tokens_total", how="loaded")
    preempted, replayed = counts.since("preemptions_total"), counts.since("replayed_requests_total")
    cached, pause = sum(each.cached for each in streams), max(each.pause for each in streams)
    row = (sum(equal), moved["loaded"] + moved["computed"], moved["loaded"], loaded, preempted, cached, replayed)
    table(way.name, f"{dies} dies" if dies else "", len(streams), *row, f"{pause:.1f} s")
    assert all(equal) and all(len(each.tokens) == FULL.output for each in streams)
    assert all(greedy(each.prompt, each.tokens) for each in streams)
    assert [each.ends for each in streams] == [ONE_END] * len(streams)
    assert moved["loaded"] > 0 and loaded > 0
    assert dies or moved["loaded"] + moved["computed"] == len(streams), moved
    assert (replayed > 0) == bool(dies)
    assert preempted > 0 or way.name != "preemption"
    assert way.name != "warm cache" or all(each.cached >= whole_blocks(each.prompt) for each in streams)
