"""The page's table of what a GPU has shown: `python -m kernels.bench.measured --into docs/gpu.md`.

It is read from the results of `python -m kernels.bench --all --json docs/gpu-results.json`. Without that file, and where a part of
it failed or was left out, a row says that it was not measured.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path("docs/gpu-results.json")
NOT_MEASURED = "not measured"
HEAD = ("| what | beside | wanted | measured |", "| :--- | :--- | ---: | ---: |")


@dataclass(frozen=True, slots=True)
class MeasuredRow:
    """One line of the table.

    Attributes:
        name: of the line in its part's figures.
        beside: what its ratio is of.
        wanted: of the ratio; empty: nothing was set.
        part: of `kernels.bench --all`.
    """

    name: str
    beside: str
    wanted: str = ""
    part: str = "kernels"


ROWS = (
    MeasuredRow("decode attention, 64 x 4096", "copy bandwidth", "0.92 or more"),
    MeasuredRow("decode attention, 1 x 8192", "copy bandwidth"),
    MeasuredRow("decode attention, 1 x 131072", "copy bandwidth"),
    MeasuredRow("prefill attention, 1 x 16384 on 0, of torch's FlashAttention-2", "its operations per second"),
    MeasuredRow("prefill attention, 1 x 16384 on 0, of torch's cuDNN", "its operations per second"),
    MeasuredRow("prefill attention, 1 x 16384 on 0, boxes of 32 keys, 5 stages", "the faster of these"),
    MeasuredRow("prefill attention, 1 x 32 on 131072, of torch's FlashAttention-2", "its operations per second"),
    MeasuredRow("W4A16 Q4_0, 1 x 4096 x 14336", "copy bandwidth"),
    MeasuredRow("W4A16 Q4_0, 64 x 4096 x 14336, of 16 bits", "operations per second in 16 bits"),
    *(
        MeasuredRow(f"decode {step}", "what its bytes take", "1.15 or less", "steps")
        for step in (
            "1 at 1024",
            "32 at 1024",
            "128 at 1024",
            "256 at 1024",
            "128 at 4096",
            "256 at 1024, one at 40000",
        )
    ),
)


def table(found: Mapping[str, Any] | None) -> list[str]:
    """Rows of the page's table, of the results of a run; None: there was none."""
    ratios = dict(_ratios(found or {}))
    return [
        *HEAD,
        *(
            f"| {row.name} | {row.beside} | {row.wanted} | {ratios.get((row.part, row.name), NOT_MEASURED)} |"
            for row in ROWS
        ),
    ]


def _ratios(found: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """((part, line), ratio) of a run's lines; a second try's count for what it tried."""
    for tried in (found, found.get("again", {})):
        parts = tried.get("parts", {})
        for line in parts.get("kernels", {}).get("figures", {}).get("results", ()):
            if "ratio" in line:
                yield ("kernels", line["name"]), f"{line['ratio']:.2f}"
        for line in parts.get("steps", {}).get("figures", {}).get("steps", ()):
            if "floor" in line:
                yield ("steps", line["name"]), f"{line['seconds'] / line['floor']:.2f}"


def updated(page: str, found: Mapping[str, Any] | None) -> str:
    """A page with this table in the place of the one that it has.

    Raises:
        ValueError: it has none.
    """
    lines = page.splitlines()
    start = lines.index(HEAD[0])
    stop = next((at for at in range(start, len(lines)) if not lines[at].startswith("|")), len(lines))
    lines[start:stop] = table(found)
    return "\n".join([*lines, ""])


def main() -> int:
    """Print the table, or bring a page up to date."""
    parser = argparse.ArgumentParser(prog="python -m kernels.bench.measured", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=RESULTS, help=f"of a run of everything [{RESULTS}, if it is there]"
    )
    parser.add_argument("--into", type=Path, help="a page: its table is replaced")
    arguments = parser.parse_args()
    there = arguments.results != RESULTS or RESULTS.exists()
    found = json.loads(arguments.results.read_text()) if there else None
    if arguments.into is None:
        print("\n".join(table(found)))
    else:
        arguments.into.write_text(updated(arguments.into.read_text(), found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
