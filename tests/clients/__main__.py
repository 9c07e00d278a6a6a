"""Runs clients of others against a server: `python -m tests.clients [NAME ...] [--url URL | --model PATH] [--calls chosen]`.

Each does what its users do, by a script of its own (`ask_NAME.py`, `node/NAME.mjs`), unmodified, in the version that the files of
requirements and `node/package-lock.json` pin. Needs Node with npm, and PyPI and npm for the first run; then nothing but 127.0.0.1.
Not part of CI. Without --url it starts a server of its own, with the embedded model unless --model names another. A small model is
forced to call tools; to one that can, --calls chosen leaves it. A line tells of each client; the exit code is 1 where one failed.
"""

import argparse
import contextlib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.clients.environments import NEWER, NODE, OLDER, NodeClients, PythonClients, environment
from tests.e2e.server_process import ServerProcess

CLIENTS: dict[str, tuple[PythonClients | NodeClients, str]] = {
    "openai": (NEWER, "openai"),
    "openai-node": (NODE, "openai"),
    "litellm": (OLDER, "litellm"),
    "langchain-openai": (NEWER, "langchain"),
    "instructor": (OLDER, "instructor"),
    "pydantic-ai": (NEWER, "pydantic_ai"),
    "openai-agents": (NEWER, "openai_agents"),
    "ai": (NODE, "ai"),
    "dspy": (OLDER, "dspy"),
    "smolagents": (OLDER, "smolagents"),
    "llm": (NEWER, "llm"),
    "anthropic": (NEWER, "anthropic"),
}
LIMIT = 1800  # seconds a client may take
# The keys of a server of its own: the clients', and one that may ask so seldom that a client has to wait.
KEYS = "keys:\n" + "".join(
    f"  - {{name: {key}, hash: 'sha256:{hashlib.sha256(key.encode()).hexdigest()}', {limits}}}\n"
    for key, limits in (("unused", "admin: false"), ("limited", "requests_per_minute: 20"))
)


@dataclass(slots=True)
class Report:
    """What a script told. `trouble`: of the script itself, where it did not come to its end."""

    name: str
    version: str = "?"
    checks: list[dict[str, Any]] = field(default_factory=list)
    trouble: str = ""

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [check for check in self.checks if "trouble" in check]

    @property
    def ok(self) -> bool:
        return bool(self.checks) and not self.failed and not self.trouble

    def __str__(self) -> str:
        ran = ", ".join(check["check"] for check in self.checks)
        lines = [f"{self.name} {self.version}: {'ok' if self.ok else 'FAILED'} ({ran})"]
        lines += [f"  {check['check']}: {check['trouble']}" for check in self.failed]
        return "\n".join([*lines, *([f"  {self.trouble}"] if self.trouble else [])])


def read(name: str, output: str, trouble: str = "") -> Report:
    """A script's lines; what a client itself printed is passed over."""
    report = Report(name, trouble=trouble)
    for line in output.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            match json.loads(line):
                case {"package": str(), "version": str(version)}:
                    report.version = version
                case {"check": str()} as check:
                    report.checks.append(check)
    return report


def ask(name: str, url: str, model: str, calls: str) -> Report:
    """Run a client's script to its end."""
    place, script = CLIENTS[name]
    command = [*place.command(script), url, model, calls]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        try:
            code = subprocess.run(
                command, env=environment(), stdout=output, stderr=errors, timeout=LIMIT, check=False
            ).returncode
            trouble = f"the script ended with {code}" if code else ""
        except subprocess.TimeoutExpired:
            trouble = f"took more than {LIMIT} s"
        for file in (output, errors):
            file.seek(0)
        return read(name, output.read(), f"{trouble}: {errors.read()[-2000:]}" if trouble else "")


@contextlib.contextmanager
def serving(url: str | None, model: Path | None) -> Iterator[str]:
    """The server that is asked, and until when."""
    if url is not None:
        yield url.rstrip("/")
        return
    with tempfile.TemporaryDirectory() as place:
        keys = Path(place) / "keys.yaml"
        keys.write_text(KEYS)
        settings = ["--task", "generate", "embed", "--api-keys", str(keys)]
        server = ServerProcess(*([str(model)] if model else []), *settings)
        try:
            yield server.url
        finally:
            server.stop()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(CLIENTS)}; all by default")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--url", help="a server that runs, such as http://127.0.0.1:8000")
    where.add_argument("--model", type=Path, help="what a server of its own is started with")
    parser.add_argument("--calls", choices=("forced", "chosen"), default="forced", help="who decides about calls")
    options = parser.parse_args(argv)
    if unknown := set(options.names) - set(CLIENTS):
        parser.error(f"no such client: {', '.join(sorted(unknown))}")
    names = options.names or list(CLIENTS)
    for place in {CLIENTS[name][0] for name in names}:
        place.ready()
    failed = 0
    with serving(options.url, options.model) as url:
        models = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer unused"}, timeout=30)
        model = models.raise_for_status().json()["data"][0]["id"]
        for name in names:
            report = ask(name, url, model, options.calls)
            failed += not report.ok
            print(report, flush=True)
    print(f"{len(names) - failed} of {len(names)} clients", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
