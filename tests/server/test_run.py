"""What `headrace serve` says of a model that it does not serve: one sentence, the one that matters most."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.configs.model.test_config import LLAMA

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "brandnew"}, "neither a family here nor transformers reads it: "),
        ({"hidden_act": "relu"}, "config.json: hidden_act='relu' is not implemented; supported: 'silu', 'swish'."),
        ({}, "no tokenizer"),
    ],
)
def test_what_is_wrong_with_the_model_is_said_before_what_is_wrong_with_its_tokenizer(changes, said, tmp_path):
    """None of these folders has a tokenizer; the last has nothing else wrong but that, and having no weights."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | changes))
    code = f"import sys\nfrom server.cli import main\nsys.exit(main(['serve', {str(tmp_path)!r}, '--port', '0']))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False, timeout=120
    )
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("headrace: ")]
    assert said in line
