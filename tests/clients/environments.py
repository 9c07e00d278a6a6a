"""Where the clients are installed: pinned versions from PyPI and npm, in a folder that git ignores."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.source_tree import ROOT

HERE = Path(__file__).parent
PLACE = ROOT / ".clients-venv"
# What clients would tell others, they do not; nor do they fetch lists of models. The proxy is a port on which nobody listens.
QUIET = {
    "AI_SDK_TELEMETRY_DISABLED": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_AGENTS_DISABLE_TRACING": "1",
    "OTEL_SDK_DISABLED": "true",
    "SCARF_NO_ANALYTICS": "true",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
}


@dataclass(frozen=True, slots=True)
class PythonClients:
    """A virtual environment for the clients of one file of requirements."""

    requirements: Path

    @property
    def program(self) -> Path:
        return PLACE / self.requirements.stem / "bin" / "python"

    def ready(self) -> None:
        """Install what is not installed, or not in these versions."""
        mark = self.program.parent.parent / "installed"
        if mark.is_file() and mark.read_text() == self.requirements.read_text():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", self.program.parent.parent], check=True)
        subprocess.run([self.program, "-m", "pip", "install", "-q", "--no-deps", "-r", self.requirements], check=True)
        mark.write_text(self.requirements.read_text())

    def command(self, name: str) -> list[str]:
        return [str(self.program), str(HERE / f"ask_{name}.py")]


@dataclass(frozen=True, slots=True)
class NodeClients:
    """The packages of `node/`, beside a copy of its scripts: modules are looked for from where a script is."""

    folder: Path = HERE / "node"

    def ready(self) -> None:
        place, lock = PLACE / "node", "package-lock.json"
        installed = place / lock
        fresh = installed.is_file() and installed.read_bytes() == (self.folder / lock).read_bytes()
        shutil.copytree(self.folder, place, dirs_exist_ok=True)
        if not fresh or not (place / "node_modules").is_dir():
            subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=place, check=True)

    def command(self, name: str) -> list[str]:
        return ["node", str(PLACE / "node" / f"{name}.mjs")]


NEWER = PythonClients(HERE / "requirements-openai3.txt")
OLDER = PythonClients(HERE / "requirements-openai2.txt")
NODE = NodeClients()


def environment() -> dict[str, str]:
    """Of a client's process: as ours, but it tells nobody anything, and finds no key of somebody else."""
    return {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")} | QUIET
