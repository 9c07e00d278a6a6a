"""One line per setting, with the figures that decide between them."""

from dataclasses import dataclass

from loadtest.report.metrics import Spread, Summary

_COLUMNS = ("TTFT p50", "p99 s", "ITL p50", "p99 ms", "TPOT p50", "p99 ms", "tok/s", "in SLO", "unfit")


@dataclass(frozen=True, slots=True)
class PolicyOutcome:
    """A setting and the figures of its run: latencies in seconds, output tokens per second, share within the objectives, requests
    that are longer than the context."""

    setting: int
    ttft: Spread | None
    itl: Spread | None
    tpot: Spread | None
    output_rate: float
    attainment: float | None
    unfit: int

    @classmethod
    def of(cls, setting: int, summary: Summary) -> "PolicyOutcome":
        """The figures of a run that has this summary."""
        spreads = {name: by_class.get("all") for name, by_class in summary.latencies.items()}
        judged = [each for each in summary.goodput if each.klass == "all"] or summary.goodput
        return cls(
            setting,
            spreads.get("ttft"),
            spreads.get("itl"),
            spreads.get("tpot"),
            summary.output_rate,
            judged[0].attainment if judged else None,
            summary.unfit,
        )

    def __str__(self) -> str:
        cells = [f"{self.setting:>16}"]
        for spread, factor in ((self.ttft, 1.0), (self.itl, 1e3), (self.tpot, 1e3)):
            places = 3 if factor == 1.0 else 1
            values = (spread.p50, spread.p99) if spread else (None, None)
            cells += [f"{'-':>9}" if value is None else f"{value * factor:>9.{places}f}" for value in values]
        cells.append(f"{self.output_rate:>9.0f}")
        cells.append(f"{self.attainment:>9.1%}" if self.attainment is not None else f"{'-':>9}")
        cells.append(f"{self.unfit:>9}")
        return "".join(cells)


def header(setting: str) -> str:
    """The line above the rows."""
    return f"{setting:>16}" + "".join(f"{name:>9}" for name in _COLUMNS)
