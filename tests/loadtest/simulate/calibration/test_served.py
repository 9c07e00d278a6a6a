"""Any server's own metrics say how it was set up, and how long it took."""

import numpy as np
import pytest

from loadtest.client.scrape import parse_metrics
from loadtest.report.run_file import write_run
from loadtest.simulate.calibration import cli
from loadtest.simulate.calibration.fit import FITTED, _equations
from loadtest.simulate.calibration.served import ServerSums, settings_of, sums_of
from tests.loadtest.simulate.calibration.test_fit import TRUE, cost, made

VLLM = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",enable_prefix_caching="False",engine="0",num_gpu_blocks="4000"} 1.0
vllm:num_requests_running{engine="0",model_name="x"} 3.0
"""
SUM, COUNT = (f'vllm:request_prefill_time_seconds_{each}{{engine="0",model_name="x"}}' for each in ("sum", "count"))


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        (VLLM, {"block_size": 16, "kv_blocks": 4000, "prefix_caching": False}),
        ('sglang:cache_config_info{page_size="1",num_pages="90000"} 1', {"block_size": 1, "kv_blocks": 90000}),
        ("headrace_kv_pool_blocks 3000", {"kv_blocks": 3000}),
        ('headrace_kv_pool_blocks{engine="0"} 3000', {"kv_blocks": 3000}),
        ('vllm:cache_config_info{block_size="None",num_gpu_blocks="0"} 1', {}),
        ("tgi_queue_size 0", {}),
    ],
)
def test_settings_are_read_by_the_names_of_each_server(text, settings):
    assert settings_of(parse_metrics(text)) == settings


def test_several_engines_behind_one_address_are_refused():
    with pytest.raises(ValueError, match="2 series"):
        settings_of(parse_metrics(VLLM + VLLM.replace('engine="0"', 'engine="1"')))


def vllm_run():
    """A simulated run with the sums of vLLM in place of ours."""
    measured = made(1, 3.0)
    records = measured.run.records
    total = sum(record.timings["prefill_ms"] for record in records) / 1e3
    measured.run.scraped = {"before": {SUM: 7.0, COUNT: 9.0}, "after": {SUM: 7.0 + total, COUNT: 9.0 + len(records)}}
    return measured


def test_sums_count_only_if_the_server_had_no_other_requests():
    measured = vllm_run()
    assert sums_of(measured.run).prefills == pytest.approx(
        sum(record.timings["prefill_ms"] for record in measured.run.records) / 1e3
    )
    measured.run.scraped["after"][COUNT] += 1
    assert sums_of(measured.run) == ServerSums()


@pytest.mark.parametrize("run", [made(2, 3.0), vllm_run()], ids=["steps", "prefills"])
def test_the_true_constants_solve_the_server_s_own_equation(run):
    rows, seconds = _equations([run], cost(TRUE))
    sums = sums_of(run.run)
    assert len(seconds) == 2 * len(run.run.records) + 1 and (sums.steps is None) != (sums.prefills is None)
    assert rows[-1] @ np.array([getattr(TRUE, name) for name in FITTED]) == pytest.approx(seconds[-1])


def test_calibrate_takes_what_no_option_says_from_the_metrics(tmp_path, capsys):
    run, metrics = tmp_path / "run.json", tmp_path / "metrics"
    write_run(vllm_run().run, run)
    metrics.write_text(VLLM)
    server = ["--hardware", "cpu-2core", "--model", "smollm2-135m", "--no-fit", "--max-step-tokens", "128"]
    cli.main([str(run), *server, "--metrics", str(metrics)])
    said = capsys.readouterr().err
    assert "by the server's metrics block_size 16, kv_blocks 4000, prefix_caching False" in said
    assert "assumed --max-running 64\n" in said
    cli.main([str(run), *server, "--max-running", "9", "--block-size", "8"])
    assert "metrics" not in (said := capsys.readouterr().err) and "assumed" not in said


def test_a_run_with_guesses_that_are_not_simulated_is_left_out():
    measured, accepted = vllm_run(), 'vllm:spec_decode_num_accepted_tokens_total{engine="0",model_name="x"}'
    measured.run.scraped["before"][accepted] = measured.run.scraped["after"][accepted] = 5.0
    assert cli.doubts(measured.run) == []
    measured.run.scraped["after"][accepted] = 6.0
    assert "only headrace's guesses are simulated" in cli.doubts(measured.run)[0]
