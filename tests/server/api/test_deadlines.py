"""`deadline_ms`: refused at once with the quote, or promised; what became of it is counted."""

import pytest

from scheduler.router.deadlines import Deadline, DeadlineFor, Outcome, Promise, PromiseProgress, Promises
from scheduler.router.view import ReplicaView
from scheduler.types.messages import FinishReason, PublishBlocks
from server.telemetry.lifetime import Lifetime
from tests.server.api.scripted import Server, run
from tests.server.engines.test_replay import Mortal

LONG = [5] * 100


def counted(server, outcome):
    return server.engine._metrics.registry.get_sample_value("headrace_deadlines_total", {"outcome": outcome})


def measured(**settings):
    """A server whose engine has computed enough to know what it costs."""
    server = Server(**settings)
    server.engine.routing.cost._prompt_steps = 99
    return server


def asked(**fields):
    return {"prompt": LONG, "max_tokens": 4, **fields}


@pytest.mark.parametrize(("until", "words"), [("first_token", "first token"), ("end", "end")])
def test_what_cannot_be_in_time_is_refused_at_once_with_the_quote(until, words):
    async def body():
        server = measured()
        sent = []
        server.engine._send = sent.append
        server.engine.published.blocks._send = sent.append
        refused = await server.post("/v1/completions", asked(deadline_ms=1, deadline_for=until))
        error = refused.json()["error"]
        assert (refused.status_code, error["code"], error["param"]) == (429, "deadline_refused", "deadline_ms")
        assert error["quote_ms"] > 1 and int(refused.headers["retry-after"]) >= 1
        assert (
            f"`deadline_ms` is 1, and the {words} can be expected after {error['quote_ms']:.0f} ms" in error["message"]
        )
        assert sent == [PublishBlocks()], "only that it wants to know what is cached"
        assert (counted(server, "refused"), counted(server, "kept")) == (1, 0)

    run(body)


@pytest.mark.parametrize("until", ["first_token", "end"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_promised_and_kept_is_counted(until, stream):
    async def body():
        server = measured()
        answer = await server.post("/v1/completions", asked(deadline_ms=60_000, deadline_for=until, n=2, stream=stream))
        assert answer.status_code == 200
        assert (counted(server, "kept"), counted(server, "broken"), counted(server, "refused")) == (2, 0, 0)

    run(body)


def test_where_nothing_was_measured_nothing_is_refused():
    async def body():
        server = Server()
        assert (await server.post("/v1/completions", asked(deadline_ms=0.001))).status_code == 200
        assert counted(server, "broken") == 1

    run(body)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"deadline_for": "end"}, "deadline_for", "needs `deadline_ms`"),
        ({"deadline_ms": 0}, "deadline_ms", "0"),
        ({"deadline_ms": 5, "deadline_for": "later"}, "deadline_for", "later"),
        ({"deadline_ms": 5, "prompt": [[1], [2]]}, "deadline_ms", "1 prompt, got 2"),
    ],
)
def test_a_deadline_that_makes_no_sense_is_refused_by_name(fields, param, words):
    async def body():
        refused = await Server().post("/v1/completions", asked(**fields))
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (400, param) and words in error["message"]

    run(body)


def came(seconds, **fields):
    """A request whose first token came after so many seconds, and whose client then left."""
    return PromiseProgress(first_token=seconds, complete=None, over=seconds, **fields)


def test_the_margin_follows_what_came_of_the_quotes():
    promises, deadline = Promises(), Deadline(10.0)
    view = ReplicaView(first_token_seconds=1.0, decode_seconds=0.5)
    first = promises.quote(deadline, view, view, 5)
    assert first == pytest.approx(promises.margin)
    assert promises.quote(Deadline(10.0, DeadlineFor.END), view, view, 5, waited=1.0) == pytest.approx(
        1 + 3 * promises.margin
    )
    assert promises.promise(deadline, first).ended(came(9.0)) is Outcome.KEPT
    raised = promises.quote(deadline, view, view, 5)
    assert raised > first, "it took much longer than the quote"
    assert promises.promise(deadline, raised).ended(came(11.0)) is Outcome.BROKEN
    for _ in range(2000):
        promises.promise(deadline, 2.0).ended(came(1.0))
    assert promises.quote(deadline, view, view, 5) < first
    unknown = ReplicaView(measured=False)
    assert promises.quote(deadline, unknown, unknown, 5) is None
    assert not deadline.allows(9.9) and deadline.allows(9.0) and deadline.allows(None)


def test_a_quote_for_the_end_counts_the_hand_over_and_the_pace_of_the_replica_that_decodes():
    promises, end = Promises(), Deadline(10.0, DeadlineFor.END)
    prefill = ReplicaView(first_token_seconds=1.0, decode_seconds=9.0)
    decode = ReplicaView(first_token_seconds=9.0, decode_seconds=0.5, measured=False)
    quote = promises.quote(end, prefill, decode, 5, hand_over_seconds=0.25)
    assert quote == pytest.approx((1.0 + 0.25 + 3 * 0.5) * promises.margin)
    assert promises.quote(end, prefill, decode, 1, hand_over_seconds=0.25) == pytest.approx(promises.margin)
    assert promises.quote(Deadline(10.0), prefill, decode, 5, hand_over_seconds=0.25) == pytest.approx(promises.margin)


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        ({"finished": 0.9}, Outcome.ABANDONED),  # the client left while there was time
        ({"finished": 1.1}, Outcome.BROKEN),  # it left when it was late
        ({"finished": 0.2, "reason": FinishReason.ERROR}, Outcome.BROKEN),  # no engine goes on
        ({"finished": 0.2, "reason": FinishReason.ABORT, "failed": True}, Outcome.BROKEN),  # the server ended it
        ({"finished": 0.9, "reason": FinishReason.STOP, "replays": 1}, Outcome.KEPT),
        ({"finished": 1.1, "reason": FinishReason.LENGTH, "replays": 1}, Outcome.BROKEN),
    ],
)
def test_a_promise_is_broken_by_what_is_late_or_fails_and_not_by_a_client_that_leaves_in_time(fields, outcome):
    learnt = []
    promise = Promise(Deadline(1.0, DeadlineFor.END), 0.5, learnt.append)
    assert Lifetime(received=0.0, promise=promise, first_token=0.1, **fields).promise_kept() is outcome
    assert learnt == ([True] if fields["finished"] == 1.1 and "replays" not in fields else [])


@pytest.mark.parametrize("steps", [0, 2])  # before and after the first token
@pytest.mark.parametrize("until", ["first_token", "end"])
@pytest.mark.parametrize(("deadline_ms", "outcome"), [(60_000, "kept"), (0.001, "broken")])
def test_a_promise_outlives_its_engine_and_is_counted_once(deadline_ms, outcome, until, steps):
    async def body():
        mortal = Mortal()
        server = mortal.server
        mortal.dies_after(steps, mortal.comes_back)
        fields = {"deadline_ms": deadline_ms, "deadline_for": until, "ignore_eos": True, "stream": True}
        answer = await server.post("/v1/completions", asked(**fields))
        assert answer.status_code == 200 and answer.text.endswith("[DONE]\n\n") and '"error"' not in answer.text
        assert server.process.requests, "another engine went on"
        assert {each.value: counted(server, each.value) for each in Outcome if counted(server, each.value)} == {
            outcome: 1
        }

    run(body)
