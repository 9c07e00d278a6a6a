"""What one knob means for another: contradictions are refused with both names, what only the machine decides is told."""

import json
import re
from itertools import product

import pytest
from pydantic import ValidationError

from configs.derived import read_by
from configs.knob import knobs
from configs.loader import ConfigError, load, render
from configs.settings import ContradictionError, Settings
from server.cli import main
from server.commands import EXIT_USAGE

GPU_VALUES = {
    "gpu_weights": "dense",
    "gpu_kv": "fp8",
    "tensor_parallel": 2,
    "cuda_graphs": True,
    "gpu_shared_prefixes": True,
    "gpu_memory_fraction": 0.9,
}
CPU_VALUES = {"cpu_precision": "fast", "kv_memory_fraction": 0.4, "draft_model": "small.gguf"}
KEYS = {"api_key": ["sesame", "open-up"]}
NO_CACHE = {"prefix_caching": False}

# The knob that nothing would read, its value, the knob that decides, what it has to be set to for the first to be read.
PAIRS = [
    *(({name: value}, {"device": "cpu"}, {"device": "cuda"}) for name, value in GPU_VALUES.items()),
    *(({name: value}, {"device": "cuda"}, {"device": "cpu"}) for name, value in CPU_VALUES.items()),
    ({"kv_memory_fraction": 0.2}, {"kv_blocks": 64}, {"kv_blocks": None}),
    ({"kv_memory_fraction": 0.4}, {"kv_blocks": 64}, {"kv_blocks": None}),
    ({"gpu_memory_fraction": 0.5}, {"kv_blocks": 64}, {"kv_blocks": None}),
    ({"max_batch_lines": 10}, {"data_dir": None}, {"data_dir": "kept"}),
    ({"batch_step_tokens": 10}, {"data_dir": None}, {"data_dir": "kept"}),
    ({"kv_disk_gib": 8.0}, {"kv_disk_path": None}, {"kv_disk_path": "kv"}),
    ({"kv_host_gib": 0.5}, NO_CACHE, {"prefix_caching": True}),
    ({"kv_disk_path": "kv"}, NO_CACHE, {"prefix_caching": True}),
    ({"eviction": "predicted"}, NO_CACHE, {"prefix_caching": True}),
    ({"eviction": "lru"}, NO_CACHE, {"prefix_caching": True}),
    ({"gpu_shared_prefixes": True}, NO_CACHE, {"prefix_caching": True}),
    ({"scheduling": "throughput"}, NO_CACHE, {"prefix_caching": True}),
    ({"preemption": "swap"}, {"kv_host_gib": 0.0}, {"kv_host_gib": 1.0}),
    ({"preemption": "swap"}, {"kv_host_gib": 0.0}, {"kv_disk_path": "kv"}),
    ({"protect_kv": True}, {"kv_host_gib": 0.0}, {"kv_host_gib": 1.0}),
    ({"roles": ["prefill:1", "decode:1"]}, {"kv_host_gib": 0.0}, {"kv_host_gib": 1.0}),
    ({"protect_kv": True}, {"kv_host_gib": 0.0}, {"kv_disk_path": "kv"}),
    ({"kv_host_gib": 0.5}, {"tensor_parallel": 2}, {"tensor_parallel": 1}),
    ({"kv_disk_path": "kv"}, {"tensor_parallel": 2}, {"tensor_parallel": 1}),
    *(
        (asked, {"scheduling": scheduling}, {"scheduling": "fair"})
        for asked, scheduling in product(
            ({"tenant_weights": ["ann=2"]}, {"decode_price": 2.0}), ("fcfs", "priority", "throughput")
        )
    ),
    ({"allow_long_max_model_len": True}, {"max_model_len": None}, {"max_model_len": 9}),
    ({"isolate_keys": True}, {"api_key": []}, KEYS),
    ({"key_names": ["a", "b"]}, {"api_key": []}, KEYS),
    ({"priority_keys": ["key1"]}, {"api_key": []}, KEYS),
    ({"admin_keys": ["key1"]}, {"api_key": []}, KEYS),
    ({"usage_db": "use.db"}, {"api_key": []}, KEYS),
    ({"routing": "least-work"}, {"engines": 1}, {"engines": 2}),
    ({"decode_slo_ms": 50.0}, {"engines": 1}, {"engines": 2}),
    ({"gpus_per_engine": 1}, {"ray": None}, {"ray": "auto"}),
    ({"cpus_per_engine": 4}, {"ray": None}, {"ray": "10.0.0.1:6379"}),
    ({"priority_scope": "all"}, {"scheduling": "fcfs"}, {"scheduling": "fair"}),
    ({"priority_aging_seconds": 5.0}, {"scheduling": "fcfs"}, {"scheduling": "throughput"}),
    ({"priority_aging_seconds": 5.0}, {"priority_scope": "none"}, {"priority_scope": "all"}),
    ({"cpu_precision": "fast"}, {"block_size": 8}, {"block_size": 16}),
    ({"speculation": "lookup"}, {"gpu_kv": "fp8"}, {"gpu_kv": "auto"}),
    ({"speculation": "draft"}, {"draft_model": None}, {"draft_model": "small.gguf"}),
    ({"draft_model": "small.gguf"}, {"speculation": "off"}, {"speculation": "auto"}),
    ({"draft_model": "small.gguf"}, {"speculation": "lookup"}, {"speculation": "draft"}),
    ({"draft_model": "small.gguf"}, {"cpu_precision": "exact"}, {"cpu_precision": "fast"}),
    ({"host": "::"}, {"uds": "x.sock"}, {"uds": None}),
    ({"port": 80}, {"uds": "x.sock"}, {"uds": None}),
    ({"tls_key": "k.pem"}, {"tls_cert": None}, {"tls_cert": "c.pem"}),
    ({"forwarded_allow_ips": ["10.0.0.1"]}, {"uds": "x.sock"}, {"uds": None}),
    ({"uds_access": "all"}, {"uds": None}, {"uds": "x.sock"}),
    ({"log_content": True}, {"access_log": False}, {"access_log": True}),
    ({"health_seconds": 200.0}, {"hang_seconds": 120.0}, {"hang_seconds": 300.0}),
]
EACH_PAIR = pytest.mark.parametrize(
    ("asked", "against", "along"),
    PAIRS,
    ids=[f"{next(iter(asked))} and {next(iter(against.items()))}" for asked, against, _ in PAIRS],
)


def contradictions(**values):
    with pytest.raises(ValidationError) as caught:
        Settings(**values)
    (detail,) = caught.value.errors()
    error = detail["ctx"]["error"]
    assert isinstance(error, ContradictionError)
    return error.found


@EACH_PAIR
def test_a_knob_that_nothing_would_read_is_refused_with_both_names_and_the_fix(asked, against, along):
    (name,), (partner,) = asked, against
    found = [one for one in contradictions(**asked, **against) if one.names[0] == name]
    assert [one.names for one in found] == [(name, partner)]
    text = found[0].text
    assert text.startswith(f"{name} is set, but ") and text.endswith(f", or leave {name} out")
    assert partner in text.partition(": ")[2]
    assert Settings(**asked, **along).asks_for(name)


@EACH_PAIR
def test_the_same_is_so_where_the_other_knob_is_not_set_at_all(asked, against, along):
    defaults = {name for name, value in against.items() if value == knobs()[name].default}
    if defaults:
        assert contradictions(**asked)
    else:
        assert Settings(**asked, **{name: along[name] for name in along if name != "device"}).asks_for(
            next(iter(asked))
        )


def test_words_of_requests_may_go_into_traces_alone(monkeypatch):
    assert Settings(log_content=True, otlp_endpoint="http://127.0.0.1:4318").asks_for("log_content")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert Settings(log_content=True).asks_for("log_content")
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert contradictions(log_content=True)


@EACH_PAIR
def test_what_is_only_a_default_contradicts_nothing(asked, against, along):
    assert Settings(**against).model_dump() == Settings().model_dump() | against


@pytest.mark.parametrize(
    "nothing",
    [
        {"device": "cpu", "cuda_graphs": False, "gpu_shared_prefixes": False, "gpu_kv": "auto", "tensor_parallel": 1},
        {"prefix_caching": False, "kv_host_gib": 0.0, "kv_disk_path": None, "scheduling": "fair"},
        {"preemption": "recompute"},
        {"preemption": "auto"},
        {
            "scheduling": "fcfs",
            "tenant_weights": [],
            "decode_price": None,
            "priority_aging_seconds": 0.0,
            "priority_keys": [],
        },
        {"scheduling": "fcfs", "priority_scope": "none"},
        {"isolate_keys": False, "key_names": []},
        {"tensor_parallel": 2, "kv_host_gib": 0.0},
        {"engines": 1},
        {"engines": 2, "prefix_caching": False},
    ],
    ids=str,
)
def test_a_value_that_asks_for_nothing_is_no_contradiction(nothing):
    assert Settings(**nothing).model_dump() == Settings().model_dump() | nothing


def test_all_contradictions_are_found_at_once():
    found = contradictions(device="cpu", gpu_kv="fp8", gpu_weights="fp8", kv_disk_gib=1, isolate_keys=True)
    assert {one.names for one in found} == {
        ("gpu_kv", "device"),
        ("gpu_weights", "device"),
        ("kv_disk_gib", "kv_disk_path"),
        ("isolate_keys", "api_key"),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"key_names": ["a"], **KEYS}, ["1 names", "2 keys"]),
        ({"key_names": ["a", "b", "c"], **KEYS}, ["3 names", "2 keys"]),
        ({"tenant_weights": ["shop=2"], "scheduling": "fair", **KEYS}, ["'shop'", "key1, key2"]),
        ({"tenant_weights": ["key1=2"], "scheduling": "fair", "key_names": ["a", "b"], **KEYS}, ["'key1'", "a, b"]),
        ({"tenant_weights": ["shop=2"], "scheduling": "fair", "api_keys": "k"}, ["'shop'", "given there, as `weight`"]),
        ({"priority_keys": ["shop"], **KEYS}, ["'shop'", "key1, key2"]),
        ({"admin_keys": ["shop"], **KEYS}, ["admin_keys", "'shop'", "key1, key2"]),
        ({"priority_keys": ["key1"], "scheduling": "fcfs", **KEYS}, ["with fcfs requests have no priorities"]),
        ({"priority_keys": ["key1"], "priority_scope": "all", **KEYS}, ["only priority_scope tenant"]),
        ({"priority_keys": ["key1"], "priority_scope": "none", **KEYS}, ["only priority_scope tenant"]),
    ],
)
def test_keys_names_and_weights_have_to_agree(settings, words):
    (found,) = contradictions(**settings)
    assert all(word in found.text for word in words)


@pytest.mark.parametrize(
    ("settings", "names", "cure"),
    [
        (KEYS | NO_CACHE | {"isolate_keys": True}, ("isolate_keys", "prefix_caching"), {"prefix_caching": True}),
        (
            {"preemption": "swap", "kv_host_gib": 1.0, "max_preemptions": 0},
            ("preemption", "max_preemptions"),
            {"max_preemptions": 1},
        ),
        (
            KEYS | {"scheduling": "throughput", "priority_aging_seconds": 5.0},
            ("priority_aging_seconds", "priority_keys"),
            {"priority_keys": ["key1"]},
        ),
    ],
    ids=" ".join,
)
def test_a_knob_that_three_others_leave_without_effect_is_refused_too(settings, names, cure):
    (found,) = contradictions(**settings)
    assert found.names == names
    assert Settings(**settings | cure).asks_for(names[0])


@pytest.mark.parametrize("limit", ["max_output_tokens", "max_model_len"])
def test_no_answer_is_by_default_longer_than_any_may_be(limit):
    (found,) = contradictions(default_max_tokens=10, **{limit: 9})
    assert found.names == ("default_max_tokens", limit) and "is 10" in found.text and "allows 9" in found.text


def test_a_default_length_is_within_the_largest():
    (found,) = contradictions(default_max_tokens=10, max_output_tokens=9)
    assert (
        found.names == ("default_max_tokens", "max_output_tokens") and "10" in found.text and "allows 9" in found.text
    )
    assert Settings(default_max_tokens=9, max_output_tokens=9).default_max_tokens == 9


def test_names_and_weights_that_agree():
    shared = Settings(key_names=["shop", "shop"], scheduling="fair", tenant_weights=["shop=2"], **KEYS)
    assert shared.tenants == ["shop", "shop"]
    assert Settings(scheduling="fair", tenant_weights=["key2=2"], **KEYS).tenants == ["key1", "key2"]
    assert Settings(scheduling="fair", tenant_weights=["ann=2", "ben=0.5"]).tenants == []


@pytest.mark.parametrize("name", GPU_VALUES | CPU_VALUES)
def test_a_knob_of_the_other_device_is_named_in_a_warning_where_the_machine_decides(name):
    value = (GPU_VALUES | CPU_VALUES)[name]
    own, other = ("cuda", "cpu") if name in GPU_VALUES else ("cpu", "cuda")
    settings = Settings(**{name: value})
    assert settings.unread_on(own) == []
    (sentence,) = settings.unread_on(other)
    assert sentence == f"{name} is set, but device auto turned out to be {other}, which does not read it"


def test_the_declaration_says_which_device_reads_a_knob():
    assert set(read_by("cuda")) == set(GPU_VALUES)
    assert set(read_by("cpu")) == set(CPU_VALUES)


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_defaults_are_told_of_by_nobody(kind):
    assert Settings().unread_on(kind) == []
    assert Settings(device=kind, kv_blocks=9).unread_on(kind) == []


def test_several_engines_share_what_is_below_their_devices():
    settings = Settings(engines=4, kv_host_gib=2.0)
    assert settings.engine_names == ["engine-0", "engine-1", "engine-2", "engine-3"]
    assert settings.keeps and Settings(engines=2, kv_disk_path="kv").keeps
    assert not Settings(engines=4).keeps and not Settings(kv_host_gib=2.0, kv_disk_path="kv").keeps
    assert Settings().engine_names == ["engine"]


def test_on_several_machines_even_one_engine_has_a_keeper():
    assert Settings(ray="auto", kv_host_gib=2.0).keeps and not Settings(ray="auto").keeps


@pytest.mark.parametrize(
    ("settings", "names", "words"),
    [
        ({"tensor_parallel": 2}, ("gpus_per_engine", "tensor_parallel"), ("is 0", "is 2")),
        ({"tensor_parallel": 2, "gpus_per_engine": 4}, ("gpus_per_engine", "tensor_parallel"), ("is 4", "is 2")),
        ({"device": "cuda"}, ("device", "gpus_per_engine"), ("is 0", "set gpus_per_engine 1")),
        ({"device": "cpu", "gpus_per_engine": 1}, ("gpus_per_engine", "device"), ("device cpu", "set device cuda")),
    ],
)
def test_what_ray_reserves_is_what_engines_use(settings, names, words):
    (found,) = contradictions(ray="auto", **settings)
    assert found.names == names and all(word in found.text for word in words)
    assert Settings(ray="auto", tensor_parallel=2, gpus_per_engine=2).asks_for("gpus_per_engine")


@pytest.mark.parametrize("address", ["ray://10.0.0.1:10001", "10.0.0.1", "", ":6379", "10.0.0.1:port"])
def test_what_is_no_address_of_a_cluster_is_refused(address):
    with pytest.raises(ValidationError, match="HOST:PORT of the cluster's head"):
        Settings(ray=address)


@pytest.mark.parametrize("address", ["auto", "10.0.0.1:6379", "head.example:6379", "[fd00::1]:6379"])
def test_an_address_of_a_cluster(address):
    assert Settings(ray=address).ray == address


def test_kv_goes_from_node_to_node_only_where_there_is_some():
    assert contradictions(kv_transfer="nixl", kv_host_gib=1.0)[0].names == ("kv_transfer", "ray")
    assert contradictions(kv_transfer="nixl", ray="auto")[0].names == ("kv_transfer", "kv_host_gib")


def test_routing_by_prefixes_needs_prefixes():
    assert Settings(engines=2).router == "prefix-aware"
    assert Settings(engines=2, prefix_caching=False).router == "least-work"


def test_only_routing_by_expected_time_keeps_to_a_time_between_tokens():
    assert Settings(engines=2, decode_slo_ms=50.0).decode_slo_ms == 50.0
    for other in ({"routing": "round-robin"}, {"prefix_caching": False}):
        (found,) = contradictions(engines=2, decode_slo_ms=50.0, **other)
        assert found.names == ("decode_slo_ms", "routing")
    assert Settings(engines=2, prefix_caching=False, routing="round-robin").router == "round-robin"
    (found,) = contradictions(engines=2, prefix_caching=False, routing="prefix-aware")
    assert found.names == ("routing", "prefix_caching")


def test_an_engine_gets_what_was_set_and_nothing_about_keys():
    settings = Settings(
        isolate_keys=True, key_names=["a", "b"], scheduling="fair", tenant_weights=["a=2"], kv_host_gib=0.5, **KEYS
    )
    sent = settings.for_engine()
    assert json.loads(sent) == {"scheduling": "fair", "tenant_weights": ["a=2"], "kv_host_gib": 0.5}
    got = Settings.model_validate_json(sent)
    assert got.model_fields_set == {"scheduling", "tenant_weights", "kv_host_gib"}


@EACH_PAIR
def test_valid_settings_are_valid_in_the_engine(asked, against, along):
    settings = Settings(**asked, **along)
    got = Settings.model_validate_json(settings.for_engine())
    about_keys = {"api_key", "key_names", "api_keys", "usage_db", "isolate_keys", "priority_keys", "admin_keys"}
    assert got.model_dump(exclude=about_keys) == settings.model_dump(exclude=about_keys)
    assert got.unread_on("cpu") == settings.unread_on("cpu")
    assert got.unread_on("cuda") == settings.unread_on("cuda")


def test_a_contradiction_names_where_each_value_is_from(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("prefix_caching: false\n")
    with pytest.raises(ConfigError) as caught:
        load({"kv_host_gib": "1"}, {"HEADRACE_KV_DISK_GIB": "2"}, str(path))
    disk, host = sorted(str(caught.value).splitlines())
    assert "kv_disk_gib from environment HEADRACE_KV_DISK_GIB, kv_disk_path from default" in disk
    assert f"kv_host_gib from flag --kv-host-gib, prefix_caching from file {path}" in host


def test_a_file_that_repeats_a_default_asks_for_nothing_and_a_flag_does(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text("device: cpu\nkv_disk_gib: 8\ncuda_graphs: true\ngpu_memory_fraction: 0.9\n")
    assert load({}, {}, str(path)).settings.device == "cpu"
    with pytest.raises(ConfigError, match="cuda_graphs"):
        load({"cuda_graphs": True}, {}, str(path))
    with pytest.raises(ConfigError, match="kv_disk_gib"):
        load({"kv_disk_gib": "8"}, {}, str(path))


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda"])
def test_every_configuration_that_is_printed_is_accepted_again(device, tmp_path):
    loaded = load({"device": device, "kv_blocks": "64"}, {})
    path = tmp_path / "printed.yaml"
    path.write_text(render(loaded))
    assert load({}, {}, str(path)).settings == loaded.settings


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--isolate-keys"], ["isolate_keys", "api_key"]),
        (["--device", "cpu", "--tensor-parallel", "2"], ["tensor_parallel", "device"]),
        (["--kv-host-gib", "0.1", "--no-prefix-caching"], ["kv_host_gib", "prefix_caching", "--no-prefix-caching"]),
        (["--tensor-parallel", "2", "--kv-host-gib", "1"], ["kv_host_gib", "tensor_parallel"]),
        (["--kv-disk-gib", "20"], ["kv_disk_gib", "kv_disk_path"]),
        (["--device", "cpu", "--gpu-kv", "fp8"], ["gpu_kv", "device"]),
    ],
    ids=" ".join,
)
def test_the_command_refuses_a_contradiction_before_anything_starts(flags, names, capsys):
    assert main(["serve", *flags]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith("headrace serve: ")
    assert all(name in said for name in names)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("allowed_hosts", host) for host in ("https://x.example", "x.example:8000", "x.example/", "::1", "*.example", "a b")),
        ("allowed_hosts", "ä.example"),
        *(("forwarded_allow_ips", address) for address in ("proxy.example", "10.0.0.1/8")),
        *(("cors_origins", origin) for origin in ("x.example", "https://", "https://x.example/app", "https://*.example", "//x")),
    ],
)  # fmt: skip
def test_a_name_that_nobody_can_send_is_refused(name, value):
    (found,) = contradictions(**{name: ["*", value]})
    assert found.names == (name,) and repr(value) in found.text


def test_names_as_clients_send_them_are_accepted():
    Settings(
        allowed_hosts=["llm.example", "LLM.example", "10.0.0.1", "[2001:db8::1]", "my_service", "xn--4ca.de", "*"],
        cors_origins=[
            "https://x.example",
            "http://x.example:8443/",
            "http://[::1]:3000",
            "chrome-extension://abc",
            "null",
            "*",
        ],
    )


def test_engines_follow_from_their_roles():
    settings = Settings(roles=["prefill:1", "decode:2"], kv_host_gib=1.0)
    assert settings.engines == 3
    assert settings.engine_roles == {"engine-0": "prefill", "engine-1": "decode", "engine-2": "decode"}
    assert Settings(roles=["prefill:1,decode:2"], kv_host_gib=1.0) == settings
    assert Settings(engines=2).engine_roles == {"engine-0": "mixed", "engine-1": "mixed"}
    assert Settings(roles=["mixed:2"], engines=2).engine_roles == {"engine-0": "mixed", "engine-1": "mixed"}
    again = Settings.model_validate_json(settings.for_engine())
    assert again.engine_roles == settings.engine_roles


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"roles": ["prefill:1", "decode:2"], "engines": 2}, "roles names 3 engines, but engines is 2"),
        ({"roles": ["prefill:2"]}, "none is meant for decode: add decode:1 or mixed:1"),
        ({"roles": ["decode:2"]}, "none is meant for prefill: add prefill:1 or mixed:1"),
        (
            {"roles": ["decode:0"]},
            "must be ROLE:COUNT with a ROLE of mixed, prefill, decode and a COUNT from 1 to 4096",
        ),
        ({"roles": ["prefill:4000", "decode:4000"]}, "roles names 8000 engines, and there can be at most 4096"),
        ({"roles": ["reader:1"]}, "got 'reader:1'"),
        ({"roles": ["prefill"]}, "got 'prefill'"),
    ],
)
def test_roles_that_say_nothing_or_too_much_are_refused(settings, sentence):
    with pytest.raises(ValidationError, match=re.escape(sentence)):
        Settings(kv_host_gib=1.0, **settings)


@pytest.mark.parametrize("path", ["//", "/llm/", "llm", "/v1", "/a/../b", "/.", "/a/.."])
def test_no_server_is_under_a_path_that_clients_would_change(path):
    (found,) = contradictions(root_path=path)
    assert found.names == ("root_path",) and repr(path) in found.text
    assert Settings(root_path="/.well/a..b").root_path == "/.well/a..b"
