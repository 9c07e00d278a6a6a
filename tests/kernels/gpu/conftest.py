"""Interpreted kernels are slow, and their tables of cases are long: by default every third case of a table runs.

`KERNEL_CASES=all make test ARGS=tests/kernels/gpu` runs all of them: do that after a change to a kernel.
"""

import os
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
EVERY = 1 if os.environ.get("KERNEL_CASES") == "all" else 3


def pytest_collection_modifyitems(config, items):
    seen = Counter()
    kept, left = [], []
    for item in items:
        if HERE not in item.path.parents:
            kept.append(item)
            continue
        test = (item.path, item.originalname)
        (kept if seen[test] % EVERY == 0 else left).append(item)
        seen[test] += 1
    items[:] = kept
    config.hook.pytest_deselected(items=left)
