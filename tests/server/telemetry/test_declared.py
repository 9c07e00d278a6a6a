"""What happens at every token is told as prometheus_client would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.telemetry.declared import FROM_1_MS, FrequentHistogram


@given(st.lists(st.sampled_from(FROM_1_MS) | st.floats(0, 400), max_size=20))
def test_the_exposition_is_that_of_the_library(amounts):
    registries = CollectorRegistry(), CollectorRegistry()
    histograms = (
        FrequentHistogram("gap_seconds", "Between two.", FROM_1_MS, registries[0]),
        Histogram("gap_seconds", "Between two.", registry=registries[1], buckets=FROM_1_MS),
    )
    for histogram in histograms:
        for amount in amounts:
            histogram.observe(amount)
    ours, theirs = map(generate_latest, registries)
    assert ours == theirs
