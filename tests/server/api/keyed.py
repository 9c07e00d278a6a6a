"""Servers with a file of keys, for tests: the key of `ann` is `ann-key`."""

import hashlib

from server.keys.usage import HOUR
from server.keys.usage_store import UsageQuery
from tests.server.api.scripted import Server

COMPLETIONS = "/v1/completions"
BODY = {"prompt": "abcd", "max_tokens": 8}
EVERYTHING = UsageQuery(start=0, end=2**40, bucket=HOUR, most=100)


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def text_of(**keys):
    """The file of these keys, each with its fields; the key of `ann` is `ann-key`."""
    lines = ["keys:"] if keys else ["keys: []"]
    for name, fields in keys.items():
        digest = hashlib.sha256(f"{name}-key".encode()).hexdigest()
        lines += [
            f"- name: {name}",
            f"  hash: sha256:{digest}",
            *(f"  {field}: {value}" for field, value in fields.items()),
        ]
    return "\n".join(lines) + "\n"


def keyed_server(path, keys, reply="Hello, wörld!", **settings):
    """A server with these keys, and further settings."""
    path.write_text(text_of(**keys))
    return Server(reply, api_keys=str(path), **settings)


async def used(server):
    """Each key's (requests, errors, limited, prompt, cached, completion tokens), over all hours and models."""
    sums = {}
    for _, key, _, *counts in await server.context.accounts.book.read(EVERYTHING):
        sums[key] = [before + count for before, count in zip(sums.get(key, [0] * 6), counts, strict=True)]
    return sums
