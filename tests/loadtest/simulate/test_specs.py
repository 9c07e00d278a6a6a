import pytest

from loadtest.simulate import specs
from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import Costs, SpecError, load_costs, load_hardware, load_model, write_costs

GPUS = ("a10", "a100", "b200", "h100", "h200", "l4", "l40s", "mi300x", "rtx-4090", "rtx-5090")
HARDWARE = (*GPUS, "cpu-2core", "cpu-2core-avx2", "epyc-9654", "ryzen-9950x", "xeon-8592plus")
MODELS = {
    "llama-3-8b": 8.03e9,
    "llama-3.1-8b": 8.03e9,
    "llama-3-70b": 70.6e9,
    "qwen3-0.6b": 0.596e9,
    "smollm2-135m": 0.1345e9,
}


@pytest.mark.parametrize("name", HARDWARE)
def test_every_device_can_be_read(name):
    hardware = load_hardware(name)
    assert hardware.name == name
    assert hardware.memory_bytes_per_second < min(hardware.operations_per_second.values())
    assert hardware.source and hardware.fitted == name.startswith("cpu-2core")
    assert bool(hardware.price_per_hour) == bool(hardware.price_source)
    rates = hardware.operations_per_second
    assert (
        (rates["bf16"] if name in GPUS else rates["fp32"]) == hardware.attention_operations_per_second <= rates["int8"]
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_the_parameters_it_is_named_for(name):
    model = load_model(name)
    tables = 1 if model.tied_head else 2
    assert model.layer_weights + tables * model.head_weights == pytest.approx(MODELS[name], rel=0.01)


def test_the_folders_hold_what_is_tested_here():
    assert {path.stem for path in (specs.CONFIGS / "hardware").iterdir()} == set(HARDWARE)
    assert {path.stem for path in (specs.CONFIGS / "models").iterdir()} == set(MODELS)


def test_the_embedded_model_is_as_large_as_its_file_says():
    # 66,355,200 bytes of Q4_1 and 30,081,024 of Q8_0, as the file's header counts them.
    assert load_model("smollm2-135m").weight_bytes == 66_355_200 + 30_081_024


def test_kv_of_a_token():
    assert load_model("llama-3-8b").kv_bytes_per_token == 128 * 1024


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("name: a100", "nome: a100"), "unknown key nome"),
        (("name: a100\n", ""), "name is missing"),
        (("link_bytes_per_second: 3e+11", "link_bytes_per_second: -1"), "a number of at least 0"),
        (("link_bytes_per_second: 3e+11", "link_bytes_per_second: fast"), "a number of at least 0"),
        (("host: 2.5e+10", "host: no"), "tier_bytes_per_second.host"),
        (("name: a100", "name: [a100]"), "str is expected"),
        (("  step: 0.0015", "  stop: 0.0015"), "costs: unknown key stop"),
        (("name: a100", "name: 'a"), "a.yaml: "),
    ],
)
def test_a_broken_description_is_refused_by_file_and_key(change, says, tmp_path):
    text = (specs.CONFIGS / "hardware" / "a100.yaml").read_text()
    assert change[0] in text
    path = tmp_path / "a.yaml"
    path.write_text(text.replace(*change))
    with pytest.raises(SpecError, match=r"a\.yaml") as caught:
        load_hardware(str(path))
    assert says in str(caught.value)


def test_a_fraction_of_a_layer_is_refused(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text((specs.CONFIGS / "models" / "llama-3-8b.yaml").read_text().replace("layers: 32", "layers: 32.5"))
    with pytest.raises(SpecError, match="layers: a whole number"):
        load_model(str(path))


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(SpecError, match="a10, a100, b200, cpu-2core, cpu-2core-avx2, epyc-9654, h100, h200"):
        load_hardware("b300")


def test_constants_come_back_as_they_were_written(tmp_path):
    costs = Costs(step=0.0015, token=0, sequence=5e-6, matrices=1.25, attention=1.4, request=0.004, delivery=0.001)
    write_costs(costs, tmp_path / "c.yaml", "two\nlines")
    assert load_costs(tmp_path / "c.yaml") == costs


def test_what_does_not_fit_is_refused_with_both_numbers():
    model = load_model("llama-3-70b")
    with pytest.raises(SpecError, match=r"141\.1 GB of weights and 1 x h200 give 126\.9 GB"):
        CostModel(load_hardware("h200"), model).kv_blocks(32)
    assert CostModel(load_hardware("h200"), model, devices=2).kv_blocks(32) > 10_000
    with pytest.raises(SpecError, match="no link"):
        CostModel(load_hardware("cpu-2core"), load_model("smollm2-135m"), devices=2)
    with pytest.raises(SpecError, match="computes in bf16"):
        CostModel(load_hardware("cpu-2core"), model)
