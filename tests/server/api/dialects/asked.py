"""Asking the scripted server in a dialect: events as they are sent, checked for what holds of all of them."""

import json

from tests.server.api.scripted import Server, run


def events_of(text: str) -> list[dict]:
    """The data of each event, whose name is its type; a final [DONE] is left out."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = block.split("\n")
        if lines == ["data: [DONE]"]:
            continue
        name, data = lines[0].removeprefix("event: "), json.loads(lines[1].removeprefix("data: "))
        assert len(lines) == 2 and data["type"] == name
        found.append(data)
    return found


def asked(path, body, headers=None, **server):
    """The JSON of an answer, and the server."""

    async def ask():
        served = Server(**server)
        response = await served.post(path, body, headers=headers or {})
        return response, served

    return run(ask)


def streamed(path, body, **server) -> list[dict]:
    """The events of an answer."""
    response, _ = asked(path, {**body, "stream": True}, **server)
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/event-stream")
    return events_of(response.text)


def prompt_of(server: Server, at: int = -1) -> str:
    """What the model was given, special tokens included."""
    ids = server.process.requests[at].prompt_ids
    return server.context.tokenizer.decode(ids, skip_special_tokens=False)
