"""Responses that are stored: gone on with, shown again, listed, deleted, told from another tenant's, and bounded."""

import threading

import pytest

from configs.settings import Settings
from server.errors import ResponseNotFound
from server.schema.dialects.responses_answers import InputItems, ResponseAnswer
from server.stream.response_store import ResponseStore, StoredResponse
from server.text.tokenizer import Tokenizer
from tests.server.api.dialects.asked import events_of, prompt_of
from tests.server.api.scripted import Server, run

PATH = "/v1/responses"
KEYS = {"api_key": ["ann-key", "bob-key"], "key_names": ["ann", "bob"]}


def of(key):
    return {"authorization": f"Bearer {key}"}


def test_a_response_goes_on_with_the_one_before():
    async def turns():
        server = Server("ok")
        first = (await server.post(PATH, {"input": "one", "instructions": "Be brief."})).json()
        second = (await server.post(PATH, {"input": "two", "previous_response_id": first["id"]})).json()
        body = {"input": "three", "previous_response_id": second["id"], "instructions": "Shout.", "stream": True}
        last = events_of((await server.post(PATH, body)).text)[-1]["response"]
        assert last["previous_response_id"] == second["id"]
        again = await server.post(PATH, {"input": "four", "previous_response_id": last["id"]})
        return prompt_of(server, 2), prompt_of(server, 3), again

    third, fourth, again = run(turns)
    said = [("user", "one"), ("assistant", "ok"), ("user", "two"), ("assistant", "ok"), ("user", "three")]
    turns = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said)
    assert third == f"<|im_start|>system\nShout.<|im_end|>\n{turns}<|im_start|>assistant\n"
    assert fourth.startswith(turns) and again.status_code == 200, (
        "a stream is stored, too, and instructions are not kept"
    )


def test_a_history_is_tokenized_in_a_thread_however_short_the_body(monkeypatch):
    inline, encode = [], Tokenizer.encode

    def noted(self, *arguments, **options):
        inline.append(threading.current_thread() is threading.main_thread())
        return encode(self, *arguments, **options)

    monkeypatch.setattr(Tokenizer, "encode", noted)

    async def turns():
        server = Server("ok")
        inline.clear()
        first = (await server.post(PATH, {"input": "one"})).json()
        before = inline.copy()
        inline.clear()
        await server.post(PATH, {"input": "two", "previous_response_id": first["id"]})
        return before, inline

    before, after = run(turns)
    assert before and all(before) and after and not any(after)


def test_it_is_shown_listed_and_deleted():
    async def ask():
        server = Server("ok")
        items = [{"role": "user", "content": text} for text in ("a", "b", "c")]
        made = (await server.post(PATH, {"input": items, "metadata": {"k": "v"}})).json()
        path = f"{PATH}/{made['id']}"
        shown = (await server.client.get(path)).json()
        pages = [await server.client.get(f"{path}/input_items?limit=2&order={order}") for order in ("asc", "desc")]
        after = await server.client.get(f"{path}/input_items?order=asc&after={pages[0].json()['last_id']}")
        wrong = [
            await server.client.get(f"{path}/input_items?{q}")
            for q in ("limit=0", "limit=" + "1" * 5000, "order=up", "after=x")
        ]
        wrong.append(await server.client.get(f"{path}?stream=true"))
        gone = [await server.client.delete(path), await server.client.get(path), await server.client.delete(path)]
        on = await server.post(PATH, {"input": "a", "previous_response_id": made["id"]})
        return made, shown, [*pages, after], wrong, gone, on

    made, shown, pages, wrong, gone, on = run(ask)
    assert shown == made and ResponseAnswer.model_validate(shown)
    lists = [InputItems.model_validate(page.json()) for page in pages]
    texts = [[item["content"][0]["text"] for item in each.data] for each in lists]
    assert texts == [["a", "b"], ["c", "b"], ["c"]] and [each.has_more for each in lists] == [True, True, False]
    assert [(each.status_code, each.json()["error"]["param"]) for each in wrong] == [
        (400, name) for name in ("limit", "limit", "order", "after", "stream")
    ]
    assert [each.status_code for each in gone] == [200, 404, 404]
    assert gone[0].json() == {"id": made["id"], "object": "response", "deleted": True}
    assert on.status_code == 404 and on.json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(("body", "settings"), [({"store": False}, {}), ({}, {"response_seconds": 0})])
def test_what_is_not_to_be_stored_is_not(body, settings):
    async def ask():
        server = Server(**settings)
        made = (await server.post(PATH, {"input": "a", **body})).json()
        return made["store"], (await server.client.get(f"{PATH}/{made['id']}")).status_code

    assert run(ask) == (False, 404)


def test_nobody_sees_another_tenants_response():
    async def ask():
        server = Server("ok", **KEYS)
        made = (await server.post(PATH, {"input": "a"}, headers=of("ann-key"))).json()
        path, on = f"{PATH}/{made['id']}", {"input": "b", "previous_response_id": made["id"]}
        return [
            [
                (await server.client.get(path, headers=of(key))).status_code,
                (await server.client.get(f"{path}/input_items", headers=of(key))).status_code,
                (await server.post(PATH, on, headers=of(key))).status_code,
                (await server.client.delete(path, headers=of(key))).status_code,
            ]
            for key in ("bob-key", "ann-key")
        ]

    assert run(ask) == [[404] * 4, [200] * 4]


def test_an_item_stands_for_itself_wherever_it_is_referred_to():
    async def ask():
        server = Server("ok", **KEYS)
        first = (await server.post(PATH, {"input": "one"}, headers=of("ann-key"))).json()
        listed = (await server.client.get(f"{PATH}/{first['id']}/input_items", headers=of("ann-key"))).json()["data"]
        known = [{"type": "item_reference", "id": item["id"]} for item in (*listed, *first["output"])]
        body = {"input": [*known, {"role": "user", "content": "two"}]}
        second = await server.post(PATH, body, headers=of("ann-key"))
        stranger = await server.post(PATH, body, headers=of("bob-key"))
        await server.client.delete(f"{PATH}/{first['id']}", headers=of("ann-key"))
        on = {"input": "three", "previous_response_id": second.json()["id"]}
        third = await server.post(PATH, on, headers=of("ann-key"))
        gone = await server.post(PATH, body, headers=of("ann-key"))
        return (
            prompt_of(server),
            third,
            [(each.status_code, each.json()["error"]["param"]) for each in (stranger, gone)],
        )

    prompt, third, refused = run(ask)
    said = [("user", "one"), ("assistant", "ok"), ("user", "two"), ("assistant", "ok"), ("user", "three")]
    assert (
        prompt == "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in said) + "<|im_start|>assistant\n"
    )
    assert third.status_code == 200 and refused == [(404, "input[0].id")] * 2


def stored(name, previous=None, text="", owner=None):
    answer = {"id": name, "text": text}
    return StoredResponse(owner=owner, answer=answer, asked=[], asked_bytes=0, given=[], previous=previous)


def names(store, name):
    try:
        return [each.id for each in store.chain(name, None)]
    except ResponseNotFound:
        return None


def test_a_response_is_kept_for_a_time_after_its_last_use():
    now = [0.0]
    store = ResponseStore(Settings(response_seconds=10), clock=lambda: now[0])
    store.keep(stored("a"))
    store.keep(stored("b", previous="a"))
    store.keep(stored("c"))
    now[0] = 9
    assert names(store, "b") == ["a", "b"], "what it goes on with is used with it"
    now[0] = 18
    assert names(store, "c") is None and names(store, "b") == ["a", "b"] and len(store) == 2
    now[0] = 30
    assert names(store, "b") is None and len(store) == store.held == 0


def test_the_least_recently_used_give_way():
    size = stored("a", text="x" * 1000).size
    store = ResponseStore(Settings(response_bytes=3 * size))
    for name, previous in (("a", None), ("b", "a"), ("c", None)):
        store.keep(stored(name, previous, "x" * 1000))
    assert names(store, "b") == ["a", "b"]
    store.keep(stored("d", text="x" * 1000))
    assert names(store, "c") is None and names(store, "b") == ["a", "b"] and store.held <= 3 * size
    store.keep(stored("e", text="x" * 8000))
    assert names(store, "e") is None and len(store) == 3, "larger than all may be together"
    store.delete("a", None)
    assert names(store, "b") is None and names(store, "d") == ["d"]


def test_who_has_most_makes_room():
    size = stored("a", text="x" * 1000).size
    store = ResponseStore(Settings(response_bytes=4 * size + 99))
    store.keep(stored("mine", text="x" * 1000, owner="ann"))
    for i in range(20):
        store.keep(stored(f"bob{i:02}", text="x" * 998, owner="bob"))
    assert store.find("mine", "ann") and store.find("bob17", "bob") and len(store) == 4
    for i in range(3):
        store.keep(stored(f"ann{i}", text="x" * 1000, owner="ann"))
    assert len(store) == 4 and {each.owner for each in store._stored.values()} == {"ann", "bob"}
    store.delete("bob19", "bob")
    assert set(store._owned) == set(store._held_by) == {each.owner for each in store._stored.values()}
