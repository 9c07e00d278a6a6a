"""Batches: how far they are, and what they take."""

from server.monitoring.panels import Panel, PanelRow, Query
from server.monitoring.promql import gauge, per_second, select

BATCHES = PanelRow(
    "Batches",
    [
        Panel(
            title="Batches that have not ended",
            about="By status. One that stays in `validating` waits for a file that is read before its own.",
            queries=[Query(gauge("headrace_batches_open", by="status"), "{{status}}")],
            width=4,
            stacked=True,
        ),
        Panel(
            title="Lines per second",
            about="What batches get of the server: less where more is asked of it by those who wait.",
            queries=[
                Query(per_second("headrace_batch_lines_total", by="outcome"), "{{outcome}}"),
                Query(per_second("headrace_batch_line_retries_total"), "put off"),
            ],
            unit="reqps",
            width=6,
        ),
        Panel(
            title="Lines under way",
            about="Fewer than usual while batches are open: they are ending, or nothing is left for them.",
            queries=[
                Query(gauge("headrace_batch_lines_running"), "lines"),
                Query(gauge("headrace_idle_sequences_running"), "sequences running"),
            ],
            width=4,
        ),
        Panel(
            title="Batches that ended in a day",
            about="`expired`: there was not enough left for them within 24 hours.",
            queries=[Query(f"sum by (status) (increase({select('headrace_batches_ended_total')}[1d]))", "{{status}}")],
            kind="bargauge",
            width=5,
        ),
        Panel(
            title="Files",
            about="Uploaded, and written by batches; `--max-stored-bytes` bounds them.",
            queries=[Query(gauge("headrace_stored_file_bytes"), "bytes")],
            unit="bytes",
            width=5,
        ),
    ],
)
