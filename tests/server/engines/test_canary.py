"""The canary: what it compares with what, what counts as a difference, and that it stays out of everybody's way and books."""

import asyncio

import pytest

from scheduler.types.messages import AddRequest, FinishReason, Output
from server.engines.canary import Canary, canary_of
from server.telemetry.canary import CanaryMetrics, CanaryOutcome, CanaryPath
from tests.server.api.scripted import ScriptedProcess, Server, run

SONG = list(range(65, 91))


class Remembering(ScriptedProcess):
    """Finds what it has seen with the same salt, as an engine does."""

    def advance(self, playing) -> Output:
        request = playing.request
        output = super().advance(playing)
        if output.times is not None:
            earlier = self.requests[: self.requests.index(request)]
            known = any(each.cache_salt == request.cache_salt for each in earlier)
            output.times.cached_tokens = 96 if known else 0
        return output


class Rig:
    """A canary over an engine that plays what `song` says."""

    def __init__(self) -> None:
        self.song = lambda request: SONG
        self.server = Server()
        self.server.replace(Remembering(self.reply))
        self.metrics = CanaryMetrics()
        self.canary = Canary([self.server.engine], [1, 2, 3], self.metrics, 60.0, save_seconds=0.0)

    def reply(self, request: AddRequest) -> list[int]:
        return self.song(request)

    @property
    def asked(self) -> list[AddRequest]:
        return self.server.process.requests

    def counted(self) -> dict[tuple[str, str], float]:
        found = {}
        for path in CanaryPath:
            for outcome in CanaryOutcome:
                labels = {"path": path.value, "outcome": outcome.value}
                value = self.metrics.registry.get_sample_value("headrace_canary_checks_total", labels)
                if value:
                    found[path.value, outcome.value] = value
        return found


def test_the_first_tokens_are_the_measure_and_equal_ones_pass():
    async def test():
        rig = Rig()
        await rig.canary.round()
        assert rig.counted() == {("cold", "equal"): 1, ("warm", "equal"): 1}
        await rig.canary.round()
        assert rig.counted() == {("cold", "equal"): 2, ("warm", "equal"): 2}
        salts = [request.cache_salt for request in rig.asked]
        first, warm, cold, again = salts
        assert first == warm == again != cold, "what is kept is read in every round"
        assert all(request.sampling.temperature == 0 and len(request.prompt_ids) == 112 for request in rig.asked)

    run(test)


def test_what_is_kept_and_gives_other_tokens_twice_differs_and_is_kept_no_longer(caplog):
    async def test():
        rig = Rig()
        await rig.canary.round()
        kept = rig.asked[0].cache_salt
        rig.song = lambda request: [*SONG[:3], 1, *SONG[4:]] if request.cache_salt == kept else SONG
        await rig.canary.round()
        assert rig.counted()["warm", "differs"] == 1 and ("cold", "differs") not in rig.counted()
        assert "engine: the canary's tokens differ from those of the start from token 3 on (KV warm)" in caplog.text
        await rig.canary.round()
        assert rig.counted()["warm", "differs"] == 1
        assert rig.asked[-1].cache_salt != kept

    run(test)


def test_a_difference_that_a_second_try_does_not_have_is_none():
    async def test():
        rig = Rig()
        await rig.canary.round()
        played = len(rig.asked)
        rig.song = lambda request: [0, *SONG] if len(rig.asked) == played + 1 else SONG
        await rig.canary.round()
        assert rig.counted() == {("cold", "skipped"): 1, ("cold", "equal"): 1, ("warm", "equal"): 2}

    run(test)


def test_an_engine_that_computes_otherwise_is_measured_anew():
    async def test():
        rig = Rig()
        await rig.canary.round()
        rig.song = lambda request: SONG[5:]
        rig.server.engine.status.info.computes = "another model"
        await rig.canary.round()
        assert rig.counted() == {("cold", "equal"): 2, ("warm", "equal"): 2}

    run(test)


def test_it_fails_where_the_engine_does_and_waits_where_others_wait():
    async def test():
        rig = Rig()
        await rig.canary.round()
        rig.server.process.fail[2] = Output(request_id="", finish_reason=FinishReason.ERROR, error="NaN")
        await rig.canary.round()
        assert rig.counted()["warm", "failed"] == rig.counted()["cold", "failed"] == 1
        rig.server.process.fail.clear()
        rig.server.process.gate.clear()
        call = rig.server.call("/v1/completions", {"prompt": "a", "max_tokens": 2})
        asked = len(rig.asked)
        while len(rig.asked) == asked:
            await asyncio.sleep(0)
        await rig.canary.round()
        assert rig.counted()["warm", "skipped"] == rig.counted()["cold", "skipped"] == 1
        assert len(rig.asked) == asked + 1
        rig.server.process.gate.set()
        await call.task

    run(test)


def test_an_engine_that_fails_from_the_start_is_told_and_one_that_is_away_is_skipped():
    async def test():
        rig = Rig()
        rig.server.process.fail[2] = Output(request_id="", finish_reason=FinishReason.ERROR, error="NaN")
        await rig.canary.round()
        assert rig.counted() == {("cold", "failed"): 1}
        rig.server.process.fail.clear()
        engine = rig.server.engine

        def drained(request: AddRequest) -> list[int]:
            engine.status.draining = True
            return SONG

        rig.song = drained
        await rig.canary.round()
        assert rig.counted() == {("cold", "failed"): 1, ("cold", "equal"): 1, ("warm", "skipped"): 1}

        def ends():
            engine.status.ended("it died")
            engine.status.given_up("it died too often")
            engine.engine_ended()

        def dies(request: AddRequest) -> list[int]:
            asyncio.get_running_loop().call_soon(ends)
            return SONG

        rig.song, engine.status.draining = dies, False
        await rig.canary.round()
        assert rig.counted()["cold", "skipped"] == 1 and rig.counted()["cold", "failed"] == 1

    run(test)


def test_it_takes_no_place_in_the_queue_of_an_engine_that_is_full():
    async def test():
        rig = Rig()
        await rig.canary.round()
        engine = rig.server.engine
        rig.song = lambda request: range(65, 91)
        call = rig.server.call("/v1/completions", {"prompt": "a", "max_tokens": 20})
        while not engine.status.stats.running:
            await asyncio.sleep(0)
        rig.server.process.gate.clear()
        engine.status.info.max_running = 1
        assert engine.waiting == 0 and engine.open_count == 1
        asked = len(rig.asked)
        await rig.canary.round()
        assert len(rig.asked) == asked and rig.counted()["cold", "skipped"] == 1
        rig.server.process.gate.set()
        await call.task

    run(test)


def test_it_goes_last_and_counts_for_nobody():
    async def test():
        rig = Rig()
        await rig.canary.round()
        assert all(request.priority == 2**31 - 1 for request in rig.asked)
        sample = rig.server.context.metrics.registry.get_sample_value
        for name in ("tenant_sequences_total", "tenant_prompt_tokens_total", "tenant_generation_tokens_total"):
            assert sample(f"headrace_{name}", {"tenant": "anybody"}) == 0
        assert sample("headrace_tenant_sequences_open", {"tenant": "anybody"}) == 0
        assert sample("headrace_sequences_finished_total", {"reason": "length"}) == 0
        names = ("time_to_first_token_seconds", "inter_token_latency_seconds", "request_seconds", "queue_time_seconds")
        assert [sample(f"headrace_{name}_count") for name in names] == [0, 0, 0, 0]

    run(test)


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_a_server_has_one_only_if_it_was_asked_for(minutes):
    server = Server(canary=minutes)
    canary = canary_of(server.settings, [server.engine], lambda text: [1], server.context.metrics.canary)
    assert (canary is not None) == bool(minutes)
