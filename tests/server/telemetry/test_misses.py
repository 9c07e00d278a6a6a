"""Why a prompt was not found in the KV cache."""

from dataclasses import replace

import pytest

from scheduler.types.messages import FinishReason, RequestTimes
from scheduler.types.trail import Trail
from server.telemetry import misses
from server.telemetry.black_box import BlackBox, NotedRequest, NotedSequence, packed
from server.telemetry.explain import Reader, request_sentences
from server.telemetry.lifetime import EngineRun, Lifetime
from server.telemetry.misses import Miss, MissCause, common_tokens, why_missed

BLOCK = 8


def run(engine: str = "engine", **trail) -> EngineRun:
    return EngineRun(engine=engine, times=RequestTimes(queued=0.0, scheduled=0.0), trail=Trail(**trail))


class Box:
    """A black box, and the requests that are put in one after the other."""

    def __init__(self) -> None:
        self.box, self.count = BlackBox(), 0

    def note(self, ids, *, output=(), salt="", cached=0, tenant="ann", owner="ann", engine=None, reads=True):
        self.count += 1
        lifetime = Lifetime(received=float(self.count), prompt_tokens=len(ids), scheduled=0.0, cached_tokens=cached)
        lifetime.output_ids = list(output)
        lifetime.runs = [run() if engine is None else engine]
        sequence = NotedSequence(lifetime=lifetime, prompt=packed(ids), salt=salt, reads_cache=reads)
        record = NotedRequest(
            id=f"cmpl-{self.count}",
            request_id=f"req-{self.count}",
            owner=owner,
            tenant=tenant,
            model="m",
            created=1,
            received=0.0,
            sequences=[sequence],
        )
        self.box.note(record)
        return record

    def why(self, record: NotedRequest, *, caching=True, salts=True) -> Miss | None:
        earlier = self.box.earlier(record)
        (miss,) = why_missed(earlier, record, block_size=BLOCK, caching=caching, salts=salts)
        return miss


@pytest.fixture
def box() -> Box:
    return Box()


@pytest.mark.parametrize("common", [0, 1, 2, 7, 8, 99, 100])
def test_the_first_token_that_differs_is_found(common):
    a = list(range(100))
    b = a[:common] + [10**6 + i for i in range(100 - common)]
    assert common_tokens(packed(a), packed(b)) == common
    assert common_tokens(packed(a), packed(b[:common])) == common


def test_nothing_is_missed_where_all_but_the_last_block_was_found(box):
    box.note(range(17))
    assert box.why(box.note(range(17), cached=16)) is None


def test_a_token_that_differs_is_named_with_what_it_cost(box):
    box.note([*range(12), 99, *range(13, 40)])
    near = box.note([*range(20), 98, *range(21, 50)], output=range(50, 70))
    box.note(range(1, 40))
    miss = box.why(box.note(range(100), cached=16))
    assert (miss.cause, miss.nearest.record, miss.nearest.common) == (MissCause.DIFFERS, near, 20)
    assert (miss.tokens, miss.lost) == (96 - 16, 64 - 16)  # the nearest one has 70 tokens


def test_what_goes_on_after_the_nearest_one_is_new(box):
    box.note(range(20), output=range(20, 30))
    miss = box.why(box.note(range(60), cached=24))
    assert (miss.cause, miss.lost) == (MissCause.LONGER, 0)


def test_another_salt_keeps_apart_and_another_tenant_is_not_told_of(box):
    box.note(range(40), salt="one")
    miss = box.why(box.note(range(40), salt="two"))
    assert (miss.cause, miss.lost) == (MissCause.SALTED, 32)
    untold = box.why(box.note(range(40), salt="three"), salts=False)
    assert (untold.cause, untold.nearest) == (MissCause.FIRST, None)
    for other in ({"tenant": "ben"}, {"owner": "ben"}):
        assert box.why(box.note(range(40), **other)).cause is MissCause.FIRST


@pytest.mark.parametrize(
    ("engine", "cause"),
    [
        (run(evicted=True), MissCause.EVICTED),
        (run("engine-1"), MissCause.ELSEWHERE),
        (run(), MissCause.GONE),
    ],
)
def test_what_had_been_there_was_evicted_or_is_elsewhere(box, engine, cause):
    box.note(range(40))
    miss = box.why(box.note(range(40), engine=engine))
    assert (miss.cause, miss.lost) == (cause, 32)


def test_it_says_so_where_nothing_can_be_found(box):
    assert box.why(box.note(range(40))).cause is MissCause.FIRST
    assert box.why(box.note(range(40)), caching=False).cause is MissCause.OFF
    assert box.why(box.note(range(40), reads=False)).cause is MissCause.SCORED


def test_each_cause_has_a_sentence(box):
    record = box.note(range(40))
    near = box.note(range(40)).sequences[0]
    for cause in MissCause:
        nearest = box.why(box.note(range(40))).nearest
        without = cause in (MissCause.OFF, MissCause.SCORED, MissCause.FIRST)
        miss = Miss(cause=cause, tokens=8, lost=8, nearest=None if without else nearest)
        said = request_sentences(record, [miss], Reader(lambda tokens: f"<{len(tokens)}>"))
        assert len(said) == 3 and all(sentence.endswith(".") for sentence in said)
    assert near.lifetime.received


def test_the_oldest_go_and_what_is_kept_is_bounded():
    box = Box()
    box.box = BlackBox(size=3)
    records = [box.note(range(4)) for _ in range(5)]
    found = [box.box.find(record.id, "ann", everybodys=False) for record in records]
    assert found == [None, None, *records[2:]]
    box.box = BlackBox(most_bytes=20_000)
    huge = [box.note(range(2**11)) for _ in range(3)]
    assert box.box.find(huge[0].id, "ann", everybodys=False) is None
    assert box.box.find(huge[2].id, "ann", everybodys=False) is huge[2]


def test_outputs_and_sequences_count_among_what_is_kept(box):
    box.box = BlackBox(size=10_000, most_bytes=200_000)
    for _ in range(40):
        record = box.note(range(8))
        record.sequences *= 4
        record.sequences[0].lifetime.output_ids += range(1000)
        record.sequences[0].lifetime.reason = FinishReason.LENGTH
    kept = sum(box.box.find(f"cmpl-{number}", "ann", everybodys=False) is not None for number in range(1, 41))
    assert 0 < kept < 40


def test_what_one_answer_compares_is_bounded(box, monkeypatch):
    compared = []
    monkeypatch.setattr(misses, "common_tokens", lambda a, b: compared.append(b) or common_tokens(a, b))
    for _ in range(3):
        earlier = box.note(range(40))
        earlier.sequences *= 100
    record = box.note(range(40))
    record.sequences *= 100  # choices of one prompt
    found = why_missed(box.box.earlier(record), record, block_size=BLOCK, caching=True)
    assert len(compared) == 300 and len(found) == 100
    record.sequences = [replace(record.sequences[0], prompt=packed(range(40))) for _ in range(100)]
    why_missed(box.box.earlier(record), record, block_size=BLOCK, caching=True)
    assert len(compared) == 300 + 100 * 40
