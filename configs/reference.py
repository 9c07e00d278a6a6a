"""Writes docs/configuration.md from the declaration: `python -m configs.reference > docs/configuration.md`."""

import json

from configs.knob import Knob, knobs, sections

HEADER = """# Configuration

<!-- Written by `make docs` from configs/declaration.py and configs/http_declaration.py; a test compares the two. -->

Every knob is declared once, in `configs/declaration.py` or `configs/http_declaration.py`, and can be set
in four places. The first that has it wins:

1. a flag: `headrace serve --kv-blocks 64`
2. an environment variable: `HEADRACE_KV_BLOCKS=64`
3. a YAML file with one `knob: value` a line, named by `--config FILE` or `HEADRACE_CONFIG`: `kv_blocks: 64`
4. the default below.

`headrace serve --print-config` prints every value with its origin. A value that is refused, an unknown key and an
unknown `HEADRACE_` variable stop the start, each with one line that names the knob, where its value came from and what
is accepted.

`--config` may be repeated: `--config small --config mine.yaml` reads both, and where both have a knob the later one wins.

In a variable the items of a list are separated by commas, and an empty text unsets what has no default (but an empty `uds` is
refused); as a flag a list takes several values (`--served-model-name A B`) and may be repeated. MODEL therefore comes first
(`headrace serve MODEL --served-model-name A B`): where there is none yet, what looks like a model is refused as a further value of
a list. A flag of `true or false` has a twin: `--access-log`, `--no-access-log`. Keys given as flags can be read by every user of
the machine in its process list: prefer the variable or a file for `api_key`.

A few presets come with headrace and can be named without a path: `--config small` is `configs/presets/small.yaml`, for a machine
with little memory."""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEADER]
    for title, names in sections().items():
        heading = title[0].upper() + title[1:]
        rows = "\n".join(_row(knobs()[name]) for name in names)
        parts.append(f"## {heading}\n\n| knob | accepts | default | meaning |\n| --- | --- | --- | --- |\n{rows}")
    return "\n\n".join(parts) + "\n"


def _row(knob: Knob) -> str:
    default = "–" if knob.default is None or knob.default == [] else f"`{json.dumps(knob.default)}`"
    choices = ", ".join(f"`{choice}`" for choice in knob.choices)
    accepts = f"a list of {choices}" if choices and knob.many else choices or knob.domain
    flag = " (as an argument, not a flag)" if knob.name == "model" else ""
    return f"| `{knob.name}`{flag} | {accepts} | {default} | {knob.help} |".replace("\\", "\\\\")


if __name__ == "__main__":
    print(page(), end="")
