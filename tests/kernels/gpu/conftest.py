"""Interpreted kernels are slow, and their tables of cases are long: by default the first case of a table runs and about every
fifth of the others, chosen by name: by place, a parameter with as many values would always have the same.

`KERNEL_CASES=all make test ARGS=tests/kernels/gpu` runs all of them: do that after a change to a kernel.
"""

import os
from pathlib import Path
from zlib import crc32

HERE = Path(__file__).parent
EVERY = 1 if os.environ.get("KERNEL_CASES") == "all" else 5


def pytest_collection_modifyitems(config, items):
    seen = set()
    kept, left = [], []
    for item in items:
        if HERE not in item.path.parents:
            kept.append(item)
            continue
        test = (item.path, item.originalname)
        (kept if test not in seen or crc32(item.name.encode()) % EVERY == 0 else left).append(item)
        seen.add(test)
    items[:] = kept
    config.hook.pytest_deselected(items=left)
