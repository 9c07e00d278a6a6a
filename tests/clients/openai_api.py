"""openai-python's own API tests against a real server: `python -m tests.clients.openai_api [--model PATH] [OPTION OF PYTEST ...]`.

They come from its source distribution and are run unmodified, by pytest, in an environment of their own, with
`openai_api_plugin.py`. What must be left out of their requests and what is not served is listed here: anything else is a failure.
Needs PyPI for the first run; not part of CI.
"""

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.clients.environments import HERE, PLACE, PythonClients, environment
from tests.e2e.server_process import ServerProcess

SUITE = PythonClients(HERE / "requirements-openai-tests.txt")
VERSION = "3.57.0"
SHA256 = "5a0a89d6a542efc85e2a8cec701ca9265b795d578c777828e10fafdf80e333b6"
FILES = (
    *("test_batches.py", "test_completions.py", "test_embeddings.py", "test_files.py", "test_models.py"),
    *(
        "test_responses.py",
        "chat/test_completions.py",
        "responses/test_input_items.py",
        "responses/test_input_tokens.py",
    ),
)
NAME = "served"
LIMIT = 1800  # seconds they may take
# Fields of their requests that are refused: as docs/api.md says, or because OpenAI would refuse the value that they make up.
REFUSED: dict[str, frozenset[str]] = {
    "batches": frozenset(["after", "limit"]),
    "chat": frozenset(["audio", "logit_bias.foo", "moderation", "stream_options", "verbosity", "web_search_options"]),
    "completions": frozenset(["best_of", "logit_bias.foo", "stream_options", "suffix"]),
    "files": frozenset(["after", "limit", "purpose"]),
    "responses": frozenset(
        [
            "access_programs",
            "after",
            "background_options",
            "context_management",
            "conversation",
            "image",
            "limit",
            "moderation",
            "personality",
            "prompt",
            "starting_after",
            "stream",
            "text.verbosity",
        ]
    ),
}
NOT_SERVED = frozenset(
    [
        "not served: DELETE /chat/completions/{id}",
        "not served: DELETE /models/{id}",
        "not served: GET /chat/completions",
        "not served: GET /chat/completions/{id}",
        "not served: POST /chat/completions/{id}",
        "not served: POST /responses/compact",
        "aiohttp client is not compatible with respx2_mock",  # their own choice
    ]
)
# Tests that fail for a reason of the client's.
KNOWN = {
    r"test_completions\.py::\w+::test_method_create_with_all_params_overload_1\[": "they ask for `echo` with `logprobs`, and the "
    "first token of a prompt has no log probability: null, as OpenAI answers, which the client's types do not foresee",
    r"test_embeddings\.py::\w+::test_\w*create\[(strict|aiohttp)\]": "the client asks for base64 and, where it is strict, takes "
    "lists only",
}


def source() -> Path:
    """The folder of the source distribution, which is fetched if it is not there.

    Raises:
        ValueError: what was fetched is another file.
    """
    place = PLACE / "openai-tests-source"
    folder = place / f"openai-{VERSION}"
    if not (folder / "tests").is_dir():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", "openai", "-d", place]
        subprocess.run([*command, f"openai=={VERSION}"], check=True)
        archive = place / f"openai-{VERSION}.tar.gz"
        if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != SHA256:
            raise ValueError(f"{archive} must have the SHA-256 {SHA256}, got {found}")
        with tarfile.open(archive) as members:
            members.extractall(place, filter="data")
    return folder


def run(url: str, folder: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Run them to their end, and what came of it: the plugin's line."""
    files = [f"tests/api_resources/{file}" for file in FILES]
    command = [
        SUITE.program,
        "-m",
        "pytest",
        "-q",
        "-o",
        "addopts=",
        "--tb=short",
        "-p",
        "openai_api_plugin",
        *files,
        *chosen,
    ]
    told = {"TEST_API_BASE_URL": f"{url}/v1", "TEST_API_MODEL": NAME, "PYTHONPATH": str(HERE)}
    output = subprocess.run(
        command, cwd=folder, env=environment() | told, capture_output=True, text=True, timeout=LIMIT, check=False
    ).stdout
    for line in output.splitlines():
        if line.startswith('{"passed"'):
            return json.loads(line)  # type: ignore[no-any-return]
    raise AssertionError(f"the tests did not come to their end:\n{output[-4000:]}")


def reason(failure: str) -> str | None:
    """Why this failure is the client's, or None."""
    return next((why for pattern, why in KNOWN.items() if re.search(pattern, failure)), None)


def unexpected(result: dict[str, Any]) -> list[str]:
    """What is not as it is listed above, a line for each."""
    left_out = {(where, field) for where, field, _ in result["left_out"]}
    refused = {(where, field) for where, fields in REFUSED.items() for field in fields}
    return [
        *(f"failed: {each}" for each in result["failed"] if reason(each) is None),
        *(f"refused: {field} at {where}" for where, field in sorted(left_out - refused)),
        *(f"no longer refused: {field} at {where}" for where, field in sorted(refused - left_out)),
        *(f"skipped: {each}" for each in sorted(result["skipped"].keys() - NOT_SERVED)),
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients.openai_api", description=__doc__)
    parser.add_argument("--model", help="what the server is started with; the embedded model if absent")
    options, chosen = parser.parse_known_args(argv)
    SUITE.ready()
    folder = source()
    with tempfile.TemporaryDirectory() as data:
        settings = ["--task", "generate", "embed", "--data-dir", data, "--served-model-name", NAME]
        settings += ["--default-max-tokens", "4", "--threads", "1"]
        server = ServerProcess(*([options.model] if options.model else []), *settings)
        try:
            result = run(server.url, folder, chosen)
        finally:
            server.stop()
    print(json.dumps(result, indent=1))
    lines = unexpected(result)
    known = Counter(why for failure in result["failed"] if (why := reason(failure)) is not None)
    lines_of_known = (f"{count} fail as {why}" for why, count in known.items())
    print(*lines, *lines_of_known, sep="\n")
    print(f"{result['passed']} passed, {sum(result['skipped'].values())} not served or skipped")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
