"""The access log in both of its forms, and whose words it has."""

import json
import logging

import pytest

from engine.ipc.log_lines import JsonLines, LogFields
from tests.server.api.scripted import Server, run

BODY = {"prompt": "A secret\nquestion", "max_tokens": 3}


def line_of(record: logging.LogRecord) -> dict[str, object]:
    line = JsonLines("server").format(record)
    assert "\n" not in line
    return json.loads(line)


def logged(caplog, body, *, headers=None, **settings) -> tuple[logging.LogRecord, dict]:
    """The record of one request, and its answer."""

    async def ask():
        answer = await Server("Hello", access_log=True, **settings).post("/v1/completions", body, headers=headers or {})
        return answer.json()

    with caplog.at_level(logging.INFO, "headrace.access"):
        answer = run(ask)
    (record,) = [each for each in caplog.records if each.name == "headrace.access"]
    return record, answer


def test_a_json_line_has_ids_model_sizes_times_and_the_end(caplog):
    record, answer = logged(caplog, BODY, headers={"x-request-id": "mine"})
    line = line_of(record)
    assert (line["level"], line["logger"], line["process"]) == ("info", "headrace.access", "server")
    assert (line["id"], line["answer"], line["model"], line["status"]) == ("mine", answer["id"], "small", 200)
    counts = ("prompt_tokens", "cached_tokens", "completion_tokens", "reason")
    assert [line[name] for name in counts] == [17, 8, 3, "length"]
    assert line["request_bytes"] > 20 and line["answer_bytes"] > 100
    assert all(isinstance(line[name], float) for name in ("ms", "queue_ms", "prefill_ms", "decode_ms"))


@pytest.mark.parametrize("asked", [False, True])
def test_words_of_prompts_and_answers_stand_in_it_only_if_the_operator_asks(caplog, asked):
    record, _ = logged(caplog, BODY, log_content=asked)
    line, text = line_of(record), record.getMessage()
    assert ("secret" in text, "secret" in json.dumps(line)) == (asked, asked)
    assert (line.get("prompts"), line.get("answers")) == (([BODY["prompt"]], ["Hel"]) if asked else (None, None))
    assert "\n" not in text


def test_every_text_is_one_word_of_a_line_and_every_line_is_one_object():
    fields = LogFields(path="/a b\nstatus=200", number=1, list=["a b"])
    assert str(fields) == "path=/a%20b%0Astatus%3D200 number=1 list=[%22a%20b%22]"
    record = logging.LogRecord("headrace.http", logging.ERROR, "", 1, "it %s\nfailed", ("was",), None)
    assert line_of(record)["message"] == "it was\nfailed"
    try:
        raise ValueError("odd")
    except ValueError as error:
        record.exc_info = (type(error), error, error.__traceback__)
    assert "ValueError: odd" in line_of(record)["exception"]
