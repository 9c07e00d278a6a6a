"""The order in which the lines of a batch are run."""

import json
import random

from server.batches.order import CHUNK, run_order, shape_of


def shapes(*bodies):
    return [shape_of(json.dumps(body).encode(), number) for number, body in enumerate(bodies)]


def chat(system, user, **asked):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return {"messages": messages, "model": "any", **asked}


def test_lines_that_begin_alike_follow_each_other():
    bodies = [chat(name * 600, f"question {i}") for i, name in enumerate("abcabcabc")]
    order = run_order(shapes(*bodies))
    assert ["abcabcabc"[number] for number in order] == sorted("abcabcabc")


def test_deeper_prefixes_are_kept_together_too():
    bodies = [chat("a" * 600, second * 600 + f"{i}") for i, second in enumerate("xyxyxy")]
    order = run_order(shapes(*bodies))
    assert "".join("xyxyxy"[number] for number in order) in ("xxxyyy", "yyyxxx")


def test_what_generates_most_for_what_it_computes_goes_first():
    bodies = [
        {"prompt": "short", "max_tokens": 1},
        {"prompt": "short", "max_tokens": 100},
        {"prompt": "a long one " * 20, "max_tokens": 100},
        {"prompt": "short", "max_tokens": 10, "n": 20},
    ]
    assert run_order(shapes(*bodies)) == [3, 1, 2, 0]


def test_a_shared_prefix_counts_once():
    shared = [{"prompt": "b" * 10 * CHUNK + f" {i}", "max_tokens": 30} for i in range(10)]
    alone = [{"prompt": "c" * 3 * CHUNK, "max_tokens": 30}]
    assert run_order(shapes(*alone, *shared))[-1] == 0, (
        "ten of 256 tokens each and one prefix, against 192 tokens for one"
    )


def test_every_line_has_one_place():
    rng = random.Random(1)
    bodies = [
        {
            "prompt": "".join(rng.choices("ab", k=rng.randrange(3))) * rng.randrange(1, 400),
            "max_tokens": rng.randrange(9),
        }
        for _ in range(300)
    ]
    assert sorted(run_order(shapes(*bodies))) == list(range(300))


def test_what_is_not_understood_is_no_obstacle():
    odd = [{"prompt": 3, "max_tokens": "many"}, {"messages": None, "n": -1}, {}, {"input": ["a", 1], "max_tokens": -5}]
    assert sorted(run_order(shapes(*odd))) == [0, 1, 2, 3]
