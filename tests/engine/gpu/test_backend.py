"""From settings to a warm worker, on CPU tensors: the way a GPU's engine starts."""

from types import SimpleNamespace

import pytest
import torch

from configs.model.source import ModelError, resolve_model
from configs.settings import Settings
from engine import memory
from engine.backend import Startup
from engine.cgroups import Bound
from engine.device import StepLimits
from engine.gpu.backend import GpuBackend, run_every_kernel
from engine.gpu.formats import GpuArithmetic
from engine.gpu.loader import GpuLoader
from engine.kv_store.tiers import DiskTier, HostTier
from engine.memory import check_host_memory
from engine.models.registry import read_config
from engine.start import Starter
from scheduler.types.messages import AddRequest, FinishReason, MemoryPlan, StartPhase
from scheduler.types.sampling_params import SamplingParams
from tests.engine.gpu.tiny_gpu import CPU, one_layer


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return resolve_model(str(one_layer(tmp_path_factory.mktemp("one-layer"))))


class Recorder:
    """Stands in for the engine's channel: keeps what is sent."""

    def __init__(self):
        self.events = []

    def send(self, event):
        self.events.append(event)

    def wake(self):
        pass


# The pool is not cleared: numpy warns about what unused slots hold, where a GPU computes with it and drops the result.
@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_an_engine_starts_on_it_and_generates(source):
    """The start's own path, interpreted: weights, pool, first token, every kind of step, then a request."""
    recorder = Recorder()
    settings = Settings(device="cuda", block_size=16, kv_blocks=6, max_step_tokens=16, max_running=2)
    starter = Starter(settings, source, recorder)
    loop, ready = starter.start()
    plan = next(event for event in recorder.events if isinstance(event, MemoryPlan))
    assert (plan.blocks, plan.context, ready.context, ready.device) == (6, 96, 96, "interpreted")
    assert "; on interpreted: CPU tensors" in plan.arithmetic
    names = [event.name for event in recorder.events if isinstance(event, StartPhase)]
    assert names.index("import torch") < names.index("plan memory") < names.index("load weights")
    assert names[-1] == "compile kernels"
    scheduler, worker = loop._scheduler, loop._worker
    run_every_kernel(worker)  # which a start leaves out if nothing is compiled
    assert worker.graph_counts.recorded == 3  # of single tokens, one and two, and of 16 rows with chunks
    scheduler.add(AddRequest(request_id="r", prompt_ids=[3, 4], sampling=SamplingParams(max_tokens=2)), 0.0)
    ends = []
    while not scheduler.idle:
        step = scheduler.schedule(0.0)
        ends += scheduler.update(step, worker.run(step), 0.0)
    assert ends[-1].finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    starter.close()


def test_answers_bear_the_name_of_what_guesses(source):
    """A chunk of several rows is rounded otherwise than rows of their own."""
    startup = Startup(Settings(device="cuda"), source, read_config(source), pytest.fail, pytest.fail)
    backend = GpuBackend(startup, "for the test")
    backend._loader = SimpleNamespace(name="H200")
    plain = backend.build
    backend.drafter = SimpleNamespace(name="n-grams, 4 at most")
    assert backend.build == f"{plain}, guesses by n-grams, 4 at most"


def test_tiers_that_the_host_has_no_memory_for_are_refused(source, monkeypatch):
    """Before anything is loaded: a container's limit would end the engine when the tier fills."""
    monkeypatch.setattr(memory, "free_memory", lambda: Bound(3 * 2**30, "memory.max of /a"))
    config, tiers = read_config(source), [HostTier(2**32)]
    startup = Startup(Settings(device="cuda"), source, config, pytest.fail, pytest.fail, tiers)
    with pytest.raises(ModelError) as refused:
        GpuBackend(startup, "for the test").plan()
    assert str(refused.value) == (
        "the KV tier host needs 4.00 GiB and 3.00 GiB are available (memory.max of /a); lower --kv-host-gib."
    )
    check_host_memory([HostTier(2**31), DiskTier(source.path, 2**50)])
    check_host_memory([])


def test_eight_bit_keys_are_blocks_of_another_format(source):
    config = read_config(source)
    plain, small = (
        GpuLoader(
            Settings(),
            source,
            config,
            StepLimits(16, 2),
            CPU,
            arithmetic=GpuArithmetic("dense", torch.float32, fp8_kv=fp8),
        )
        for fp8 in (False, True)
    )
    assert small.kv_format != plain.kv_format
    assert (small.kv_element_bytes, plain.kv_element_bytes) == (1, 4)
    assert (small.exact_drafts, plain.exact_drafts) == (False, True)
