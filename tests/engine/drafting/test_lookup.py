"""How many guesses there are: what they cost and bring decides."""

from engine.drafting.lookup import PromptLookup
from engine.drafting.several import Drafters
from scheduler.drafting import DraftCandidate
from scheduler.types.sampling_params import SamplingParams
from tests.scheduler.sim import Engine

PLAIN = SamplingParams(max_tokens=100)
TEXT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20] * 2 + [5, 6, 7, 8]


def asked(drafter, tokens, most=100, name="a", sampling=PLAIN):
    (guesses,) = drafter.propose([DraftCandidate(name, tokens, sampling, most)])
    return list(guesses)


def test_what_is_right_is_guessed_further_and_what_is_wrong_no_more():
    drafter, right, wrong = PromptLookup(at_once=True), [], []
    for _ in range(8):
        right.append(len(asked(drafter, TEXT, name="right")))
        drafter.verified("right", right[-1], right[-1])
        wrong.append(len(asked(drafter, TEXT, name="wrong")))
        drafter.verified("wrong", wrong[-1], 0)
    assert right == sorted(right) and right[-1] > right[0] >= 3
    assert wrong[0] >= 3 and wrong[-1] <= 1
    assert (
        asked(drafter, TEXT, name="right") == [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 5, 6, 7, 8][: right[-1]]
    )


def busy(rows=4, step=6e-3):
    """One that has seen steps of about so many rows, each of which takes 1 ms beside what the step itself takes."""
    drafter = PromptLookup(at_once=True)
    for count in (rows, rows + 1) * 100:
        drafter.observe(count, count, step + 1e-3 * count)
    return drafter


def test_where_rows_are_cheap_each_token_is_looked_at():
    drafter, tokens = PromptLookup(at_once=True), list(range(100, 140))
    for known in range(len(tokens), len(tokens) + 100):
        assert drafter.waits("a", PLAIN, known)
        tokens.append(known + 1000)
        assert asked(drafter, tokens) == []


def test_looks_in_vain_become_rare_and_hits_end_that():
    drafter = busy()
    tokens = list(range(100, 140))
    assert drafter.waits("a", PLAIN, 39), "nothing is known yet"
    waited = []
    for known in range(len(tokens), len(tokens) + 200):
        tokens.append(known + 1000)
        if drafter.waits("a", PLAIN, len(tokens) - 1):
            waited.append(known)
            assert asked(drafter, tokens) == []
    assert len(waited) < 40
    for _ in range(600):  # from here on it repeats itself
        tokens.append(tokens[-20])
        if guesses := asked(drafter, tokens):
            drafter.verified("a", len(guesses), len(guesses))
    assert all(drafter.waits("a", PLAIN, known) for known in range(len(tokens), len(tokens) + 20))


def test_where_waiting_costs_only_what_was_mostly_right_waits():
    drafter = PromptLookup(at_once=False)
    assert drafter.waits("a", PLAIN, 10), "once, to look at it"
    guesses = asked(drafter, TEXT)
    assert not drafter.waits("a", PLAIN, len(TEXT))
    assert [known for known in range(100) if drafter.waits("a", PLAIN, known)] == [0, 32, 64, 96]
    drafter.verified("a", len(guesses), len(guesses))
    assert drafter.waits("a", PLAIN, len(TEXT))


def test_a_device_with_two_steps_in_flight_gets_guesses_too():
    def run(drafter, predictions):
        engine = Engine(blocks=400, depth=2, drafter=drafter, max_step_tokens=64, context=1000)
        for i in range(3):
            more = {"prediction_ids": tuple(predictions[f"r{i}"])} if predictions else {}
            engine.add(f"r{i}", [1 + i, 2, 3], max_tokens=60, ignore_eos=True, **more)
        engine.drain()
        return engine

    plain = run(None, None)
    guessed = run(PromptLookup(at_once=False), plain.outputs)
    assert guessed.outputs == plain.outputs and guessed.steps < plain.steps
    assert guessed.scheduler.stats.drafts_accepted > 100


def test_a_guess_that_does_not_seem_to_pay_is_made_now_and_then():
    drafter, text = busy(64, 0.0), TEXT * 30
    counts = [len(asked(drafter, text[:end])) for end in range(40, 1000)]
    assert set(counts) == {0, 1} and 1 < sum(counts) < 8


def test_a_prediction_is_guessed_from_first():
    sampling = SamplingParams(max_tokens=100, prediction_ids=(70, 71, 72, 73, 71, 74))
    drafter = PromptLookup(at_once=True)
    assert asked(drafter, [1, 2, 3, 70], 3, sampling=sampling)[:1] == [71], "one token that it begins with is enough"
    drafter.verified("a", 1, 1)
    assert asked(drafter, [1, 2, 3, 70, 71, 72], 3, sampling=sampling)[:1] == [73]


def test_who_does_not_want_it_is_not_concerned():
    drafter = PromptLookup(at_once=True)
    assert drafter.concerns(PLAIN) and not drafter.concerns(SamplingParams(max_tokens=1, speculation=False))


class Sure(PromptLookup):
    """Guesses 1 for sequences with a grammar."""

    name = "sure"

    def __init__(self):
        super().__init__(at_once=True)
        self.told = []

    def concerns(self, sampling):
        return bool(sampling.grammar)

    def propose(self, candidates):
        return [[1] for _ in candidates]

    def verified(self, request_id, proposed, accepted):
        self.told.append((request_id, proposed, accepted))


def test_of_several_the_first_who_has_a_guess_makes_it_and_hears_of_it():
    sure, lookup = Sure(), PromptLookup(at_once=True)
    drafter = Drafters([sure, lookup])
    grammar = SamplingParams(max_tokens=100, grammar="g")
    silent = SamplingParams(max_tokens=100, speculation=False)
    candidates = [DraftCandidate("a", TEXT, grammar, 4), DraftCandidate("b", TEXT, PLAIN, 4)]
    guesses = drafter.propose(candidates)
    assert list(guesses[0]) == [1] and list(guesses[1])[:2] == [9, 10]
    drafter.verified("a", 1, 1)
    drafter.verified("b", 2, 2)
    assert sure.told == [("a", 1, 1)] and lookup._guessed["b"].own.hits == 2
    assert drafter.concerns(grammar) and drafter.concerns(PLAIN) and not drafter.concerns(silent)
    assert drafter.name == "sure, prompt lookup"
    drafter.forget("b")
    assert "b" not in lookup._guessed
