"""Our package `kernels` has the name of one that transformers looks for."""

import ast
from importlib.metadata import distribution

from tests.source_tree import ROOT, tree


def test_kernels_init_is_a_docstring_and_the_hubs_kernels_is_no_requirement():
    (only,) = tree(ROOT / "kernels" / "__init__.py").body
    assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant)
    required = [line.partition("=")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()]
    required += distribution("headrace").requires or []
    assert required and not [line for line in required if line.split(" ")[0].split(">")[0].strip() == "kernels"]
