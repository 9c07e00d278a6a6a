"""What is counted for tenants, and that no client can make a series."""

import pytest

from configs.settings import Settings
from scheduler.types.messages import FinishReason
from server.telemetry.lifetime import Lifetime
from server.telemetry.metrics import Metrics


def value(metrics: Metrics, name: str, tenant: str) -> float | None:
    return metrics.registry.get_sample_value(f"headrace_tenant_{name}", {"tenant": tenant})


def ended(**more) -> Lifetime:
    lifetime = Lifetime(received=1.0, scheduled=1.25, finished=2.0, prompt_tokens=7, completion_tokens=3, **more)
    lifetime.cached_tokens = 4
    lifetime.end(FinishReason.STOP, 2.0)
    return lifetime


@pytest.fixture
def metrics() -> Metrics:
    return Metrics({"ann": 2.0, "ben": 1.0})


def test_a_sequence_counts_for_its_tenant_alone(metrics):
    metrics.sequence_begun("ann")
    metrics.sequence_begun("ann")
    assert (value(metrics, "sequences_open", "ann"), value(metrics, "sequences_open", "ben")) == (2, 0)
    metrics.sequence_ended(ended(), "ann")
    names = ("sequences_total", "prompt_tokens_total", "cached_tokens_total", "generation_tokens_total")
    assert [value(metrics, name, "ann") for name in names] == [1, 7, 4, 3]
    assert [value(metrics, name, "ben") for name in names] == [0, 0, 0, 0]
    assert value(metrics, "sequences_open", "ann") == 1
    assert value(metrics, "queue_seconds_sum", "ann") == 0.25
    assert (value(metrics, "weight", "ann"), value(metrics, "weight", "ben")) == (2, 1)


def test_errors_count_for_whoever_sent_a_key(metrics):
    metrics.request_failed("queue_full", "ben")
    metrics.request_failed("invalid_api_key")
    assert (value(metrics, "errors_total", "ann"), value(metrics, "errors_total", "ben")) == (0, 1)


@pytest.mark.parametrize("weights", [{}, {"ann": 1.0}])
def test_names_that_clients_make_up_are_no_series(weights):
    metrics = Metrics(weights)
    for number in range(50):
        metrics.sequence_begun(f"user-{number}")
        metrics.sequence_ended(ended(), f"user-{number}")
    tenants = {
        sample.labels["tenant"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if "tenant" in sample.labels
    }
    assert tenants == {*weights, "anybody"}
    assert value(metrics, "sequences_total", "anybody") == 50 and value(metrics, "sequences_open", "anybody") == 0


def test_weights_are_those_of_tenants_with_a_key():
    settings = Settings(
        api_key=["a", "b", "c"], key_names=["ann", "ben", "ben"], scheduling="fair", tenant_weights=["ann=2.5"]
    )
    assert settings.shares == {"ann": 2.5, "ben": 1.0}
    assert Settings(scheduling="fair", tenant_weights=["someone=3"]).shares == {}
