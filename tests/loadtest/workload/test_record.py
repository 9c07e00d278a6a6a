"""What is recorded replays with its sharing: from requests to a real application, over its log, to a plan."""

import logging
import re

import pytest

from engine.ipc.log_lines import JsonLines
from loadtest.workload import record
from loadtest.workload.arrivals import Closed
from loadtest.workload.plan import LoadShape, make_plan
from loadtest.workload.sharing import Shared
from loadtest.workload.traces.read import read_trace
from tests.server.api.scripted import Server, run

PROMPTS = ["x" * 70 + "a" * 40, "x" * 70 + "b" * 10, "y" * 40, "x" * 70 + "a" * 40 + "more", "short", "short"]


def shared_blocks(prompts: list[str]) -> list[int]:
    """Tokens of whole blocks of 32 with which an earlier prompt began, too: a character is a token."""
    found = []
    for place, prompt in enumerate(prompts):
        whole = [
            end for end in range(0, len(prompt) + 1, 32) if any(p.startswith(prompt[:end]) for p in prompts[:place])
        ]
        found.append(max(whole, default=0))
    return found


def log_lines(caplog, form: str, **settings: object) -> list[str]:
    async def ask():
        server = Server("Hello", access_log=True, **settings)
        for number, prompt in enumerate(PROMPTS):
            headers = {"x-session-id": "ann"} if number in (0, 3) else {}
            body = {"prompt": prompt, "max_tokens": 3, "n": 1 + (number == 2)}
            assert (await server.post("/v1/completions", body, headers=headers)).status_code == 200

    with caplog.at_level(logging.INFO, "headrace.access"):
        run(ask)
    formatter = {
        "json": JsonLines("server"),
        "text": logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"),
    }[form]
    lines = [formatter.format(each) for each in caplog.records if each.name == "headrace.access"]
    assert not any(word in line for line in lines for word in ("xxx", "yyy", "ann", "short"))
    return lines


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_is_recorded_replays_with_its_sharing(form, caplog, tmp_path, capsys):
    lines = log_lines(caplog, form, log_blocks=True)
    log, trace = tmp_path / "log", tmp_path / "trace.jsonl"
    log.write_text("\n".join(["Traceback (most recent call last):", "{", *lines]))
    assert record.main([str(log), "--output", str(trace)]) == 0
    plan = make_plan(read_trace(trace), LoadShape(arrivals=Closed(1)))
    assert [each.prompt_tokens for each in plan.requests] == [len(each) for each in PROMPTS]
    assert [each.output_tokens for each in plan.requests] == [3] * len(PROMPTS)
    sharing = Shared(0)
    assert [sharing.tokens(each, each.prompt_tokens) for each in plan.requests] == shared_blocks(PROMPTS) != [0] * 6
    sessions = [each.session for each in plan.requests]
    assert sessions[0] == sessions[3] is not None and [sessions[place] for place in (1, 2, 4, 5)] == [None] * 4
    assert re.fullmatch(r"[0-9a-f]{12}", sessions[0])


def test_without_the_option_lines_have_no_hashes(caplog):
    requests = record.parse_log(log_lines(caplog, "text"))
    assert len(requests) == len(PROMPTS) and not any(each.blocks or each.session for each in requests)


def test_two_starts_have_no_hash_in_common(caplog, monkeypatch):
    found = []
    for salt in ("one", "other"):
        monkeypatch.setattr("server.stream.logged_blocks._SALT", salt)
        caplog.clear()
        (line, *_) = log_lines(caplog, "text", log_blocks=True)
        found.append({*re.search(r"blocks=(\S+)", line)[1].split(","), re.search(r"session=(\S+)", line)[1]})
    assert found[0].isdisjoint(found[1]) and len(found[0]) == 4
