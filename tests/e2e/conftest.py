import pytest

from tests.e2e.server_process import ServerProcess


@pytest.fixture(scope="session")
def server():
    """One server for all tests that leave it as they found it."""
    process = ServerProcess("--kv-blocks", "400", "--max-step-tokens", "256")
    yield process
    assert process.stop() == 0, "".join(process.output)


@pytest.fixture
def exact_server():
    """fp32 arithmetic: the one to compare with transformers."""
    process = ServerProcess("--kv-blocks", "400", "--max-step-tokens", "256", "--cpu-precision", "exact")
    yield process
    process.stop()
