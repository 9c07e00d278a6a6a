"""How many engines fit, and what is said if too few do."""

import pytest

from configs.settings import Settings
from server.engines.launch import CannotLaunch
from server.engines.nodes.placement import NodeResources, ensure_room, needs_of, seats_of


def test_a_tensor_parallel_group_is_one_place():
    settings = Settings(ray="auto", engines=2, tensor_parallel=4, gpus_per_engine=4, cpus_per_engine=2)
    needs = needs_of(settings)
    assert needs == {"CPU": 2.0, "GPU": 4.0}
    assert [seats_of(NodeResources("n", 64, gpus), needs, 9) for gpus in (3, 4, 7, 8)] == [0, 1, 1, 2]
    assert needs_of(Settings(ray="auto")) == {"CPU": 1.0}


def test_the_scarcer_of_cpus_and_gpus_decides_and_never_more_than_there_are_engines():
    needs = {"CPU": 2.0, "GPU": 1.0}
    assert seats_of(NodeResources("n", 5, 8), needs, 8) == 2
    assert seats_of(NodeResources("n", 64, 8), needs, 3) == 3


def test_what_does_not_fit_is_refused_with_all_numbers():
    nodes = [NodeResources("10.0.0.1", 4, 1), NodeResources("10.0.0.2", 4, 0.5)]
    ensure_room(nodes, {"CPU": 1.0, "GPU": 1.0}, 1)
    said = "room for 1 of 2 engines, each of which takes 1 CPU and 1 GPU of one node .10.0.0.1 has 4 CPUs and 1 GPUs; 10.0.0.2"
    with pytest.raises(CannotLaunch, match=said):
        ensure_room(nodes, {"CPU": 1.0, "GPU": 1.0}, 2)
    with pytest.raises(CannotLaunch, match="it has no node"):
        ensure_room([], {"CPU": 1.0}, 1)
