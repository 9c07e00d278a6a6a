"""`truncation: "auto"`: what is left out of a conversation that is too long, and what never is."""

from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from server.api.dialects.truncation import without_oldest
from server.schema.dialects.responses_answers import ResponseAnswer
from tests.drawn import drawn
from tests.server.api.dialects.asked import asked, prompt_of

PATH = "/v1/responses"


def said(*turns):
    return [{"role": role, "content": text} for role, text in turns]


def texts(rests):
    return ["".join(message["content"] for message in rest) for rest in rests]


def test_whole_turns_go_first_and_then_calls_of_the_last_one():
    talk = said(("system", "S"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"))
    talk += said(("assistant", "e"), ("tool", "f"), ("tool", "g"), ("assistant", "h"), ("tool", "i"))
    assert texts(without_oldest(talk)) == ["Scdefghi", "Sdefghi", "Sdhi"]


def test_what_the_model_is_to_go_on_with_stays():
    assert without_oldest(said(("system", "S"), ("user", "a"))) == []
    assert texts(without_oldest(said(("assistant", "a"), ("tool", "b"), ("assistant", "c"), ("user", "d")))) == ["d"]
    assert texts(without_oldest(said(("assistant", "a"), ("tool", "b"), ("assistant", "c"), ("tool", "d")))) == ["cd"]
    assert without_oldest([]) == []


ROLES = st.lists(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), max_size=12)


@given(ROLES)
@hypothesis_settings(max_examples=drawn(100))
def test_every_rest_is_shorter_and_has_what_has_to_stay(roles):
    talk = said(*((role, chr(97 + index)) for index, role in enumerate(roles)))
    before = talk
    for rest in without_oldest(talk):
        assert len(rest) < len(before) and all(message in before for message in rest)
        left = [message for message in talk if message not in rest]
        assert not any(message["role"] in ("system", "developer") for message in left)
        users = [message for message in talk if message["role"] == "user"]
        assert not users or users[-1] in rest
        spoken = [message for message in talk if message["role"] not in ("system", "developer")]
        assert spoken[-1] in rest
        before = rest


def items(*texts):
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": text} for index, text in enumerate(texts)]


def test_a_conversation_that_fits_is_left_as_it_is():
    talk = items("a" * 60, "b" * 60, "c")
    _, plain = asked(PATH, {"input": talk, "max_output_tokens": 20})
    _, auto = asked(PATH, {"input": talk, "max_output_tokens": 20, "truncation": "auto"})
    assert prompt_of(auto) == prompt_of(plain)


def test_one_that_is_too_long_goes_on_without_its_oldest_turns():
    talk = items("a" * 60, "b" * 60, "c" * 60, "d" * 30, "e")
    body = {"input": talk, "instructions": "Be brief.", "max_output_tokens": 20}
    refused, _ = asked(PATH, body)
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "context_length_exceeded"
    response, server = asked(PATH, {**body, "truncation": "auto"})
    answer = ResponseAnswer.model_validate_json(response.content)
    assert answer.truncation == "auto" and answer.status == "completed"
    prompt = prompt_of(server)
    assert "Be brief." in prompt and "a" * 60 not in prompt and "b" * 60 not in prompt and "c" * 60 in prompt


def test_without_a_bound_on_the_output_a_quarter_of_the_context_is_left_for_it():
    talk = items("a" * 60, "b" * 60, "c" * 60, "d" * 60, "e")
    _, server = asked(PATH, {"input": talk, "truncation": "auto"})
    request = server.process.requests[0]
    assert len(request.prompt_ids) <= 192 and request.sampling.max_tokens >= 64 and "c" * 60 in prompt_of(server)


def test_a_last_turn_that_is_too_long_by_itself_is_refused():
    for text in ("a" * 300, "a" * 10_000):
        response, _ = asked(PATH, {"input": items("b", "c", text), "truncation": "auto"})
        error = response.json()["error"]
        assert response.status_code == 400 and error["param"] == "input" and error["code"] == "context_length_exceeded"
