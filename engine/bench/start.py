"""`python -m engine.bench.start`: from a fresh process to the first token of an 8B model whose weights are on the local disk.

A checkpoint of random weights is written once; before each reading its pages are dropped from the cache (the system may keep some).
Reading the files is the floor; the difference is what the engine adds.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file

from configs.model.config import ModelConfig
from configs.model.source import resolve_model
from configs.settings import Settings
from engine.bench.steps import LLAMA_3_8B
from engine.ipc.channel import Channel
from engine.models.layout import expected_shapes
from engine.start import Starter
from scheduler.types.messages import StartPhase

_SHARD_TENSORS = 32
_READ = 64 * 2**20


def write_checkpoint(config: ModelConfig, folder: Path, device: torch.device) -> int:
    """Write a Hugging Face folder of random bf16 weights, in shards. Returns their size in bytes."""
    described = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position,
        "tie_word_embeddings": config.tie_word_embeddings,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(described))
    shapes, places = list(expected_shapes(config).items()), dict[str, str]()
    for start in range(0, len(shapes), _SHARD_TENSORS):
        name = f"model-{start:05d}.safetensors"
        shard = {
            key: torch.randn(shape, device=device, dtype=torch.bfloat16).mul_(0.02).cpu()
            for key, shape in shapes[start : start + _SHARD_TENSORS]
        }
        save_file(shard, folder / name)
        places |= dict.fromkeys(shard, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def drop_cache(folder: Path) -> None:
    """Ask the system to drop the files' pages from its cache, which it does for clean ones."""
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_seconds(folder: Path) -> float:
    """Seconds to read every file once, one after the other, into one buffer."""
    buffer = bytearray(_READ)
    began = time.perf_counter()
    for path in folder.glob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - began


class _Printed:
    """Stands in for the engine's channel: prints phases as lines of JSON."""

    def send(self, event: object) -> None:
        if isinstance(event, StartPhase):
            print(json.dumps([event.name, event.seconds]), flush=True)

    def wake(self) -> None:
        """Nobody waits."""


def start(folder: Path, device: str) -> None:
    """What the measured process does: it starts an engine and ends."""
    settings = Settings.model_validate({"device": device})
    Starter(settings, resolve_model(str(folder)), cast(Channel, _Printed())).start()
    print(json.dumps(["ready", 0.0]), flush=True)


def measure(folder: Path, name: str, device: str = "cuda") -> dict[str, Any]:
    """One start in a fresh process: seconds to its first token (None: it never came), to its end, and of each phase; exit code."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "engine.bench.start", "--start", str(folder), "--device", device]
    phases: dict[str, float] = {}
    first_token: float | None = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for phase, seconds in _lines(process):
            phases[phase] = seconds
            if phase == "first token":
                first_token = time.perf_counter() - began
        ready = time.perf_counter() - began
    return {"name": name, "first_token": first_token, "ready": ready, "phases": phases, "rc": process.returncode}


def failed(line: dict[str, Any]) -> bool:
    """Whether a start failed, by what `measure` returned."""
    return line["rc"] != 0 or line["first_token"] is None or "ready" not in line["phases"]


def _lines(process: "subprocess.Popen[str]") -> Iterator[tuple[str, float]]:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("["):
            phase, seconds = json.loads(line)
            yield phase, seconds
            if phase == "ready":
                return


def main() -> int:
    """Write a checkpoint and start on it twice: with kernels to compile, and with compiled ones. Returns 1 if a start fails or
    there is no GPU."""
    parser = argparse.ArgumentParser(prog="python -m engine.bench.start", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start is not None:
        start(arguments.start, arguments.device)
        return 0
    if not torch.cuda.is_available():
        print("no GPU: torch finds none")
        return 1
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        size = write_checkpoint(LLAMA_3_8B, folder, torch.device("cuda", 0))
        torch.cuda.empty_cache()
        drop_cache(folder)
        found: dict[str, Any] = {"bytes": size, "read_seconds": read_seconds(folder), "starts": []}
        print(f"reading {size / 1e9:.1f} GB: {found['read_seconds']:.1f} s", flush=True)
        for name in ("first", "compiled kernels"):
            drop_cache(folder)
            line = measure(folder, name)
            found["starts"].append(line)
            if arguments.json:
                arguments.json.write_text(json.dumps(found, indent=1))
            if failed(line):
                print(f"{name:18} failed with exit code {line['rc']} after {line['ready']:.1f} s: {line['phases']}")
                return 1
            print(f"{name:18} first token {line['first_token']:6.1f} s, ready {line['ready']:6.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
