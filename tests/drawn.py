"""How many examples a test draws that says so itself."""

import os

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"


def drawn(count: int) -> int:
    """A third of `count` in `make test`, ten times `count` in `make test-long`, for `settings(max_examples=...)`."""
    return 10 * count if LONG else max(1, count // 3)
