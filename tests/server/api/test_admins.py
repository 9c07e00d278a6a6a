"""What only operators may, and what a key is told of its own use."""

import time
from functools import partial

import pytest

from tests.server.api.keyed import BODY, COMPLETIONS, bearer, keyed_server
from tests.server.api.scripted import Server, run


@pytest.fixture
def served(tmp_path):
    """Makes a server with these keys, and further settings."""
    return partial(keyed_server, tmp_path / "keys.yaml")


ADMINS = [("GET", "/v1/map"), ("GET", "/v1/engines/engine/blocks"), ("POST", "/v1/engines/engine/drain"),
          ("POST", "/v1/engines/engine/restart"), ("POST", "/v1/engines/engine/undrain")]  # fmt: skip


@pytest.mark.parametrize("settings", [{"api_key": ["ann-key"], "key_names": ["ann"]}, None])
def test_without_an_admins_key_nobody_watches_or_changes_engines(settings, served):
    async def body():
        server = Server(**settings) if settings else served({"ann": {}})
        for method, path in ADMINS:
            refused = await server.client.request(method, path, headers=bearer("ann-key"))
            error = refused.json()["error"]
            assert (refused.status_code, error["code"]) == (403, "forbidden_key"), path
            assert "--admin-keys" in error["message"] and "`admin: true`" in error["message"]
        assert (await server.client.get("/v1/engines", headers=bearer("ann-key"))).status_code == 200

    run(body)


def test_an_admin_of_the_file_may(served):
    async def body():
        server = served({"ann": {"admin": "true"}, "ben": {}}, api_key=["prometheus"])
        for key, status in (("ann-key", 200), ("ben-key", 403), ("prometheus", 200)):
            metrics = await server.client.get("/metrics", headers=bearer(key))
            assert metrics.status_code == status, "they tell what everybody uses"
        drained = await server.client.post("/v1/engines/engine/drain", headers=bearer("ann-key"))
        assert drained.status_code == 200
        assert (await server.client.post("/v1/engines/engine/undrain", headers=bearer("ben-key"))).status_code == 403

    run(body)


def test_a_key_sees_its_own_use_and_an_admin_everybodys(served):
    async def body():
        server = served({"ann": {"admin": "true"}, "ben": {}, "carl": {}}, api_key=["old-key"], key_names=["old"])
        for key in ("ben", "ben", "carl", "old"):
            await server.post(COMPLETIONS, BODY, headers=bearer(f"{key}-key"))
        await server.post(COMPLETIONS, {"prompt": 1}, headers=bearer("ben-key"))

        async def ask(key, query=""):
            return await server.client.get(f"/v1/usage{query}", headers=bearer(f"{key}-key"))

        page = (await ask("ben")).json()
        refused, row = page["data"]
        day = int(time.time()) // 86400 * 86400
        assert page["has_more"] is False and page["next_page"] is None
        assert row == {
            "object": "usage", "start_time": day, "end_time": day + 86400, "key": "ben", "model": "small",
            "requests": 2, "errors": 0, "limited": 0, "prompt_tokens": 8, "cached_tokens": 4, "completion_tokens": 16,
        }  # fmt: skip
        assert refused["model"] is None and refused["errors"] == 1
        forbidden = await ask("ben", "?key=carl")
        assert forbidden.status_code == 403 and "see the use of other keys" in forbidden.json()["error"]["message"]
        found, query = [], "?limit=1&bucket=hour"
        while query:
            page = (await ask("ann", query)).json()
            found += [(row["key"], row["model"]) for row in page["data"]]
            query = page["has_more"] and f"?limit=1&bucket=hour&page={page['next_page']}"
        assert found == [("ben", None), ("ben", "small"), ("carl", "small"), ("old", "small")]
        assert [row["key"] for row in (await ask("ann", "?key=carl")).json()["data"]] == ["carl"]
        assert (await ask("ann", "?bucket=year")).json()["error"]["param"] == "bucket"
        uncounted = Server(api_key=["old-key"])
        answer = await uncounted.client.get("/v1/usage", headers=bearer("old-key"))
        assert answer.status_code == 404 and "--usage-db" in answer.json()["error"]["message"]

    run(body)
