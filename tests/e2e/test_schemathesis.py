"""Whatever fits our published schema, and whatever does not: no answer is a 5xx, and every error has OpenAI's form."""

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.e2e.server_process import ServerProcess

pytestmark = pytest.mark.processes

# Generated bodies seldom carry a bound on the output, so the model's own is kept low: the tests are about the border.
ARGUMENTS = ("--kv-blocks", "8", "--block-size", "16", "--max-step-tokens", "128", "--max-n", "4", "--max-prompts", "4")


@pytest.fixture(scope="module")
def small_server():
    server = ServerProcess(*ARGUMENTS)
    yield server
    assert server.stop() == 0, "".join(server.output)


@pytest.fixture(scope="module")
def schema(small_server):
    return schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")


def check_operation(operation, mode) -> list[int]:
    """The statuses that generated requests to one route were answered with."""
    statuses = []

    @hypothesis.settings(max_examples=3, suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def check(case):
        response = case.call(timeout=60)
        statuses.append(response.status_code)
        case.validate_response(response, checks=[not_a_server_error])
        if response.status_code >= 400 and case.method != "HEAD":
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    check()
    return statuses


def ends(operation) -> bool:
    """Whether its answer has an end; those without have tests of their own."""
    return "application/x-ndjson" not in operation.definition.raw["responses"]["200"].get("content", {})


@pytest.mark.timeout(900)  # some hundred requests, each of which may generate for as long as the context lasts
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
def test_no_request_is_a_server_error(schema, mode):
    operations = [operation for found in schema.get_all_operations() if ends(operation := found.ok())]
    if mode is GenerationMode.NEGATIVE:
        operations = [operation for operation in operations if operation.body]
    statuses = {operation.label: check_operation(operation, mode) for operation in operations}
    for route in ("POST /v1/completions", "POST /v1/chat/completions", "POST /tokenize", "POST /detokenize"):
        assert (200 if mode is GenerationMode.POSITIVE else 400) in statuses[route], route


def test_nothing_is_left_behind(small_server):
    metrics = small_server.wait_idle()
    assert metrics['headrace_kv_blocks{state="used"}'] == 0
