"""The small kernels compile for a GPU that is not here, within its registers."""

import os
import subprocess
import sys

MODULES = ("kv.block_copy", "kv.write_kv", "kv.write_kv_fp8", "norm.embedding", "norm.rms_norm", "norm.silu_mul")


def test_builds_for_a_gpu_without_spills():
    """The first variant of each, in a process of its own: this one interprets."""
    code = (
        "from importlib import import_module\n"
        "from kernels.gpu.build import build\n"
        f"for name in {MODULES}:\n"
        "    built = build(name, import_module(f'kernels.gpu.{name}').VARIANTS[0], 90)\n"
        "    assert built.fits, built\n"
        "    print(name)"
    )
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)
    assert done.stdout.split() == list(MODULES), done.stderr
