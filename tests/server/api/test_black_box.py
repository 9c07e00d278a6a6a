"""`GET /v1/requests/{id}`: who may ask about which request, and what is answered."""

import asyncio

from scheduler.types.messages import RequestTimes
from scheduler.types.trail import PromptChunk, TakenBack, Trail, Wait, WaitCause
from server.schema.request_story import RequestStory
from server.telemetry.black_box import BlackBox
from tests.server.api.scripted import Server, run

MONDAY = "The quick brown fox jumps over the lazy dog, on Monday the 3rd of May, once more, and more, and more."
TUESDAY = MONDAY.replace("Monday", "Tuesday")


def key(name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {name}"}


async def ask(server: Server, name: str, **kwargs) -> RequestStory:
    response = await server.client.get(f"/v1/requests/{name}", **kwargs)
    assert response.status_code == 200, response.text
    return RequestStory.model_validate_json(response.content)


def test_a_request_is_found_by_both_of_its_ids_and_says_first_what_matters():
    async def test():
        server = Server()
        await server.post("/v1/completions", {"prompt": MONDAY, "max_tokens": 4})
        answer = await server.post(
            "/v1/completions", {"prompt": TUESDAY, "max_tokens": 4}, headers={"x-request-id": "mine"}
        )
        by_id = await server.client.get(f"/v1/requests/{answer.json()['id']}")
        assert by_id.json() == (await server.client.get("/v1/requests/mine")).json()
        assert next(iter(by_id.json())) == "summary"
        story = RequestStory.model_validate_json(by_id.content)
        assert (story.request_id, story.open, story.sequences[0].finish_reason) == ("mine", False, "length")
        miss = story.sequences[0].miss
        assert (miss.cause, miss.position) == ("differs", MONDAY.index("Monday"))
        assert (miss.text_here, miss.text_there) == ("“Tuesday the 3rd ”", "“Monday the 3rd o”")
        assert any("“Tuesday the 3rd ”" in sentence for sentence in story.summary)

    run(test)


def test_an_open_request_can_be_asked_about():
    async def test():
        server = Server()
        server.process.gate.clear()
        call = server.call("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3})
        while not server.process.requests:
            await asyncio.sleep(0)
        job = server.process.requests[0].request_id.rpartition("-")[0]
        story = await ask(server, job)
        assert story.open and story.summary == ["It waits for an engine, or in the engine's queue."]
        server.process.gate.set()
        await call.task
        assert not (await ask(server, job)).open

    run(test)


def test_only_the_owner_of_a_request_and_admins_are_told_and_texts_are_the_owners():
    async def test():
        keys = {"api_key": ["a", "b", "c"], "key_names": ["ann", "ben", "carl"], "admin_keys": ["carl"]}
        server = Server(**keys)
        for prompt in (MONDAY, TUESDAY):
            answer = await server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2}, headers=key("a"))
        name = answer.json()["id"]
        own, admins = [await ask(server, name, headers=key(who)) for who in "ac"]
        assert own.sequences[0].miss.text_here and admins.sequences[0].miss.text_here is None
        assert not any("Tuesday" in sentence for sentence in admins.summary) and len(admins.summary) == len(own.summary)
        for others in ("b", None):
            headers = {} if others is None else key(others)
            refused = await server.client.get(f"/v1/requests/{name}", headers=headers)
            assert refused.status_code == (401 if others is None else 404)
        assert (await server.client.get("/v1/requests/nothing", headers=key("a"))).status_code == 404

    run(test)


def test_an_id_that_another_client_chose_as_well_leads_to_ones_own_request():
    async def test():
        server = Server(api_key=["a", "b"], key_names=["ann", "ben"])
        for who in "ab":
            await server.post(
                "/v1/completions", {"prompt": who, "max_tokens": 2}, headers={**key(who), "x-request-id": "same"}
            )
        stories = [await ask(server, "same", headers=key(who)) for who in "ab"]
        assert [story.tenant for story in stories] == ["ann", "ben"]
        anns = stories[0].id
        await server.post("/v1/completions", {"prompt": "b"}, headers={**key("b"), "x-request-id": anns})
        assert [(await ask(server, anns, headers=key(who))).tenant for who in "ab"] == ["ann", "ben"]

    run(test)


def test_choices_are_told_apart_and_what_holds_for_all_is_said_once():
    async def test():
        server = Server()
        answer = await server.post("/v1/completions", {"prompt": ["aaaa", "bbbb"], "max_tokens": 2})
        story = await ask(server, answer.json()["id"])
        assert len(story.sequences) == 2
        assert len([each for each in story.summary if each.startswith("Nothing") or "were found" in each]) == 1

    run(test)


def test_nothing_is_kept_where_the_black_box_is_off():
    async def test():
        server = Server()
        object.__setattr__(server.context, "black_box", BlackBox(0))
        answer = await server.post("/v1/completions", {"prompt": "a", "max_tokens": 2})
        refused = await server.client.get(f"/v1/requests/{answer.json()['id']}")
        assert refused.status_code == 404 and "black_box_requests is 0" in refused.json()["error"]["message"]

    run(test)


def test_what_the_engine_wrote_down_is_told_in_sentences():
    async def test():
        server = Server()
        answer = await server.post("/v1/completions", {"prompt": MONDAY, "max_tokens": 2})
        record = server.context.black_box.find(answer.json()["id"], None, everybodys=False)
        lifetime, at = record.sequences[0].lifetime, record.received
        trail = Trail(
            waits=[
                Wait(cause=WaitCause.BLOCKS, since=at, until=at + 2, behind="cmpl-x-0", lacking=3, holders=["cmpl-y-0"])
            ],
            chunks=[PromptChunk(step=7, start=0, tokens=101, planned=at, ended=at, step_tokens=128, step_seconds=0.5)],
            preemptions=[TakenBack(at=at + 3, by="cmpl-z-1", lost=64, saved=False, resumed=at + 4.5)],
        )
        times = RequestTimes(queued=at, scheduled=at + 2, first_token=at + 5, finished=at + 6)
        lifetime.absorb(times, trail, "engine")
        said = (await ask(server, record.id)).summary
        who = "for cmpl-x, which stood before it in the queue; most were held by cmpl-y"
        assert f"It waited 2.00 s because 3 KV blocks were missing {who}." in said
        assert "101 tokens were computed in step 7, which took 500 ms, beside 27 tokens of other requests." in said
        lost = "lost its blocks (64 computed tokens), which were given up; 1.50 s later it went on"
        assert f"It was preempted for cmpl-z and {lost}." in said

    run(test)


def test_without_keys_on_a_network_nobody_learns_an_id_with_which_to_read_anothers_stream():
    async def test():
        server = Server()
        object.__setattr__(server.context, "black_box", BlackBox(texts=False))
        other = (await server.post("/v1/completions", {"prompt": MONDAY, "max_tokens": 2})).json()["id"]
        headers = {"x-request-id": "mine"}
        own = (await server.post("/v1/completions", {"prompt": TUESDAY, "max_tokens": 2}, headers=headers)).json()["id"]
        record = server.context.black_box.find(own, None, everybodys=False)
        at = record.received
        wait = Wait(cause=WaitCause.BLOCKS, since=at, until=at + 2, behind=f"{other}-0", holders=[f"{other}-0"])
        trail = Trail(waits=[wait], preemptions=[TakenBack(at=at, by=f"{other}-0", lost=64, saved=False)])
        record.sequences[0].lifetime.absorb(RequestTimes(queued=at, scheduled=at + 2), trail, "engine")
        for name in (own, "mine"):
            text = (await server.client.get(f"/v1/requests/{name}")).text
            assert other not in text and text.count(other[:13]) >= 6
            assert (own in text) == (name == own), "who guesses a request's name learns no more than that it is there"

    run(test)
