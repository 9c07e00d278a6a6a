"""Settings: precedence, origins, refusals, and that everything derived from the declaration agrees with it."""

from pathlib import Path

import pytest
import yaml

from configs.knob import Knob, knobs, sections
from configs.loader import PRESETS, ConfigError, load, render
from configs.reference import page
from configs.settings import Settings

ROOT = Path(__file__).parents[2]
EACH_KNOB = pytest.mark.parametrize("knob", knobs().values(), ids=knobs())
# Not the default of any knob it is used for, and inside its bounds.
OTHER = {int: 2048, float: 0.25, str: "other", bool: True}

# What else has to be set for a knob to be read at all.
PARTNERS = {
    "speculation": {"draft_model": "small.gguf"},
    "allow_long_max_model_len": {"max_model_len": 2048},
    "kv_disk_gib": {"kv_disk_path": "kv"},
    "protect_kv": {"kv_host_gib": 1.0},
    "roles": {"kv_host_gib": 1.0},
    "tenant_weights": {"scheduling": "fair"},
    "decode_price": {"scheduling": "fair"},
    "decode_slo_ms": {"engines": 2},
    "ttft_slo_ms": {"roles": ["prefill:1", "decode:1"], "kv_host_gib": 1.0, "decode_slo_ms": 50.0},
    "role_switching": {"roles": ["prefill:1", "decode:1"], "kv_host_gib": 1.0},
    "routing": {"engines": 2},
    "gpus_per_engine": {"ray": "auto", "tensor_parallel": 2048},
    "cpus_per_engine": {"ray": "auto"},
    "kv_transfer": {"ray": "auto", "kv_host_gib": 1.0},
    "key_names": {"api_key": ["a"]},
    "log_blocks": {"access_log": True},
    "log_content": {"access_log": True},
    "tls_key": {"tls_cert": "cert.pem"},
    "uds_access": {"uds": "x.sock"},
    "isolate_keys": {"api_key": ["a"]},
    "usage_db": {"api_key": ["a"]},
    "priority_keys": {"api_key": ["a"], "key_names": ["other"]},
    "admin_keys": {"api_key": ["a"], "key_names": ["other"]},
    "resume_total_bytes": {"resume_bytes": 1024},
    "max_file_bytes": {"data_dir": "kept"},
    "max_stored_bytes": {"data_dir": "kept", "max_file_bytes": 1024},
    "max_batch_lines": {"data_dir": "kept"},
    "batch_step_tokens": {"data_dir": "kept"},
}


OTHER_VALUES = {
    "preemption": "recompute",
    "http_processes": 2,
    "tenant_weights": ["other=2", "a=b=0.5"],
    "roles": ["prefill:1", "decode:2"],
    "root_path": "/other/path",
    "ray": "10.0.0.1:6379",
    "forwarded_allow_ips": ["10.0.0.0/8", "*"],
    "cors_origins": ["https://other.example"],
}


def other_value(knob: Knob):
    if knob.name in OTHER_VALUES:
        return OTHER_VALUES[knob.name]
    if knob.choices:
        return [knob.choices[-1]] if knob.many else knob.choices[-1]
    value = not knob.default if knob.kind is bool else OTHER[knob.kind]
    return [value] if knob.many else value


def spelled(value) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(flags=None, environ=None, file=None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags or {}, environ or {}, file)
    return str(caught.value)


def test_without_sources_everything_is_the_default():
    loaded = load({}, {"PATH": "/bin"})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == set(Settings.model_fields)


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(file):
    path = file("port: 1\nmax_n: 1\nmax_stop: 1\n")
    loaded = load({"port": "3"}, {"HEADRACE_PORT": "2", "HEADRACE_MAX_N": "2"}, path)
    settings = loaded.settings
    assert (settings.port, settings.max_n, settings.max_stop, settings.max_logprobs) == (3, 2, 1, 20)
    assert loaded.origins["port"] == "flag --port"
    assert loaded.origins["max_n"] == "environment HEADRACE_MAX_N"
    assert loaded.origins["max_stop"] == f"file {path}"
    assert loaded.origins["max_logprobs"] == "default"


@pytest.mark.parametrize("share", ["kv_memory_fraction", "gpu_memory_fraction"])
def test_what_a_stronger_source_says_of_the_pool_replaces_what_a_weaker_one_says_by_another_name(share, file):
    shared, counted = file(f"{share}: 0.25"), {"HEADRACE_KV_BLOCKS": "64"}
    for loaded in (load({"kv_blocks": 64}, {}, shared), load({}, counted, shared)):
        assert loaded.settings.kv_blocks == 64 and loaded.origins[share] == "default"
    loaded = load({share: 0.25}, counted)
    assert (getattr(loaded.settings, share), loaded.settings.kv_blocks) == (0.25, None)
    assert loaded.origins["kv_blocks"] == "default"
    assert load({"kv_blocks": 64}, {}, "small").settings.max_running == 8
    told = refusal({share: 0.25, "kv_blocks": 64})
    assert f"{share} from flag --{share.replace('_', '-')}, kv_blocks from flag --kv-blocks" in told
    assert "kv_blocks" in refusal(file=file(f"{share}: 0.25\nkv_blocks: 64"))


@EACH_KNOB
def test_every_knob_can_be_set_in_every_source(knob, file):
    value = other_value(knob)
    partners = PARTNERS.get(knob.name, {})
    path = file(yaml.safe_dump({knob.name: value} | partners))
    for loaded in (
        load({knob.name: value if knob.many else spelled(value)} | partners, {}),
        load(partners, {knob.variable: spelled(value)}),
        load({}, {}, path),
        load({}, {"HEADRACE_CONFIG": path}),
    ):
        assert getattr(loaded.settings, knob.name) == value
        assert {name for name, origin in loaded.origins.items() if origin != "default"} == {knob.name} | set(partners)


@EACH_KNOB
def test_every_bound_is_enforced_and_named(knob):
    step = 1 if knob.kind is int else 1e-6
    outside = []
    if knob.lower is not None:
        outside.append((knob.lower if knob.open_below else knob.lower - step, knob.lower))
    if knob.upper is not None:
        outside.append((knob.upper + step, knob.upper))
    if knob.kind in (int, float) and not knob.choices:
        assert outside, "a number without any bound"
    for value, bound in outside:
        text = refusal({}, {knob.variable: str(value)})
        assert f"{knob.name} (from environment {knob.variable}): {str(value)!r} is refused" in text
        assert f"{bound:g}" in text.split("must be")[1] or str(bound) in text.split("must be")[1]


@pytest.mark.parametrize(
    "knob", [knob for knob in knobs().values() if knob.kind is not str or knob.choices], ids=lambda knob: knob.name
)
def test_what_is_no_value_at_all_is_refused(knob):
    text = refusal({knob.name: "nonsense"})
    assert knob.name in text and "nonsense" in text and knob.domain in text


def test_numbers_that_are_not_finite_or_not_whole_are_refused(file):
    assert "'nan'" in refusal({"kv_memory_fraction": "nan"})
    assert "'inf'" in refusal({"drain_seconds": "inf"})
    assert "'1.5'" in refusal({"port": "1.5"})
    assert "True" in refusal(file=file("port: true"))
    assert "None" in refusal(file=file("port: null"))


def test_every_problem_of_every_source_is_told_at_once(file):
    text = refusal({"port": "x"}, {"HEADRACE_PROT": "1", "HEADRACE_MAX_N": "0"}, file("kv_block: 3\nmax_stop: 0\n"))
    assert len(text.splitlines()) == 5
    assert "unknown key 'kv_block'. Did you mean kv_blocks?" in text
    assert "HEADRACE_PROT: unknown variable. Did you mean HEADRACE_PORT?" in text
    for name in ("port", "max_n", "max_stop"):
        assert f"{name} (from " in text


def test_variables_that_kubernetes_sets_are_explained():
    text = refusal({}, {"HEADRACE_SERVICE_HOST": "10.0.0.1", "HEADRACE_PORT": "tcp://10.0.0.1:8000"})
    assert "enableServiceLinks: false" in text
    assert "port (from environment HEADRACE_PORT)" in text


def test_of_several_files_a_later_one_outdoes_an_earlier_one(file):
    path = file("max_running: 3\nkv_memory_fraction: 0.2\n")
    loaded = load({}, {}, ["small", path])
    assert (loaded.settings.max_running, loaded.origins["max_running"]) == (3, f"file {path}")
    assert loaded.settings.kv_blocks is None and loaded.settings.kv_memory_fraction == 0.2
    assert load({}, {}, [path, "small"]).settings.max_running == 8
    assert "absent.yaml: no such file" in refusal(file=[path, "absent.yaml"])


def test_lists_and_absent_values_in_the_environment(file):
    environ = {"HEADRACE_SERVED_MODEL_NAME": "a, b,,", "HEADRACE_KV_BLOCKS": ""}
    settings = load({}, environ, file("kv_blocks: 7\napi_key: only-one\n")).settings
    assert settings.served_model_name == ["a", "b"]
    assert settings.kv_blocks is None
    assert settings.api_key == ["only-one"]


@pytest.mark.parametrize("where", ["flag", "variable"])
def test_an_empty_socket_is_refused_and_opens_no_port_instead(where):
    flags, environ = ({"uds": ""}, {}) if where == "flag" else ({}, {"HEADRACE_UDS": ""})
    with pytest.raises(ConfigError, match=r"uds \(from (flag --uds|environment HEADRACE_UDS)\): '' is refused"):
        load(flags, environ)


def test_an_empty_key_is_refused_and_not_taken_as_a_key():
    assert "api_key" in refusal({"api_key": [""]})


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "just words", "a: [1", "port: 1: 2"])
def test_a_file_that_is_not_a_mapping_is_refused_with_its_name(file, text):
    path = file(text)
    assert path in refusal(file=path)


def test_a_file_that_is_absent_or_binary_is_refused(tmp_path):
    assert "no such file" in refusal(file=str(tmp_path / "absent.yaml"))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(file=str(binary))
    assert "cannot be read" in refusal(file=str(tmp_path))


def test_an_empty_file_sets_nothing(file):
    assert load({}, {}, file("# nothing\n")).settings == Settings()


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_is_valid_and_sets_something_else_than_the_defaults(preset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loaded = load({}, {}, preset.stem)
    chosen = yaml.safe_load(preset.read_text(encoding="utf-8"))
    assert {name for name, origin in loaded.origins.items() if origin == f"file {preset}"} == set(chosen)
    assert not [name for name in chosen if getattr(loaded.settings, name) == knobs()[name].default]


def test_the_printed_settings_are_a_file_that_gives_the_same_settings(file):
    flags = {"model": 'a "quoted" \\ name: # é', "served_model_name": ["a", "b"], "kv_blocks": "9"}
    loaded = load(flags, {"HEADRACE_PREFIX_CACHING": "false"})
    text = render(loaded)
    assert load({}, {}, file(text)).settings == loaded.settings
    origins = dict(line.rsplit("  # ", 1) for line in text.splitlines())
    assert sum(origin == "default" for origin in origins.values()) == len(knobs()) - 4
    assert "  # environment HEADRACE_PREFIX_CACHING" in text


def test_secrets_are_printed_nowhere_and_the_mask_is_no_setting(file):
    loaded = load({}, {"HEADRACE_API_KEY": "sesame,opens"})
    text = render(loaded)
    assert "sesame" not in text and "opens" not in text and "*masked" in text
    assert "cannot be read" in refusal(file=file(text))
    assert "hush" not in refusal(file=file("api_key: {hush: 1}"))


def test_the_declaration_sorts_every_knob_under_one_title():
    grouped = [(title, name) for title, names in sections().items() for name in names]
    assert [name for _, name in grouped] == list(Settings.model_fields)
    assert all(title for title, _ in grouped)
    assert all(knob.help.endswith(".") for knob in knobs().values())


def test_the_reference_page_is_the_one_generated_from_the_declaration():
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == page(), "run `make docs`"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            {"roles": ["prefill:1,x:1"]},
            "'x:1' is refused; it must be a list, each item ROLE:COUNT with a ROLE of mixed, prefill,",
        ),
        ({"roles": ["x:1", "decode"]}, "'x:1', 'decode' are refused; it must be a list, each item ROLE:COUNT"),
        ({"roles": ["x:1"], "engines": 3}, "as in prefill:1,decode:2"),
        ({"roles": ["prefill:99999"]}, "and a COUNT from 1 to 4096"),
        (
            {"tenant_weights": ["a=1", "b=0"]},
            "'b=0' is refused; it must be a list, each item NAME=WEIGHT with a WEIGHT from 0.01",
        ),
        ({"tenant_weights": ["heavy"]}, "'heavy' is refused; it must be a list, each item NAME=WEIGHT"),
        ({"key_names": ["a", ""], "api_key": ["x", "y"]}, "'' is refused; it must be a list of non-empty texts"),
        ({"api_key": ["secret", ""]}, "api_key (from flag --api-key): the value (masked) is refused"),
    ],
)
def test_a_refused_list_shows_which_items_are_wrong_and_what_they_must_be(flags, said):
    assert said in refusal(flags)
