"""How many examples a test draws that says so itself."""

import os

SCALE = 10 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 1


def drawn(count: int) -> int:
    """`count` in `make test`, ten times as many in `make test-long`, for `settings(max_examples=...)`."""
    return SCALE * count
