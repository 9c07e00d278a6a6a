"""What processes and GPUs use: tests/loadtest/grid/test_grid.py has the processes."""

from loadtest.client.usage import gpu_summary


def test_what_gpus_say_is_averaged():
    text = "0, 50, 1024\n1, 0, 10\n0, 100, 2048\n1, 0, 10\n[N/A]\n0, 1"
    found = gpu_summary(text)
    assert found["gpu0_busy_mean"] == 0.75 and found["gpu0_memory_max"] == 2**31 and found["gpu1_busy_mean"] == 0
