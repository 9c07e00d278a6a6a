"""Dockerfile, .dockerignore and docker-compose.yml fit the project. A real image is built and run by `make image-check`."""

import re
from pathlib import Path

import pytest
import yaml

from configs.settings import Settings
from loadtest.options import replay_parser
from server.api.health import ENDPOINTS
from server.monitoring.files import files
from tests.source_tree import PACKAGES, ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
COMPOSE_TEXT = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
SERVICES = yaml.safe_load(COMPOSE_TEXT)["services"]


def test_every_setting_in_a_variable_exists():
    told = {name.lower() for name in re.findall(r"HEADRACE_(\w+)=", DOCKERFILE)}
    told |= {
        name.removeprefix("HEADRACE_").lower() for each in SERVICES.values() for name in each.get("environment", ())
    }
    ours = {name for name in told if not name.startswith(("gf_", "openai_", "otel_", "jaeger_"))}
    assert len(ours) >= 7 and not ours - set(Settings.model_fields)


def test_settings_of_the_services_agree_with_each_other():
    """What a server would refuse at its start is found here; variables that are not set have their defaults."""
    for name in ("headrace", "headrace-gpu"):
        given = {
            key.removeprefix("HEADRACE_").lower(): re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)
            for key, value in SERVICES[name]["environment"].items()
            if value is not None  # the key and where traces go, which are passed on as they are outside
        }
        settings = Settings(
            **{key: [value] if key == "allowed_hosts" else value for key, value in given.items() if value}
        )
        assert settings.kv_disk_path == "/kv/cache" and settings.allowed_hosts == ["headrace"]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_alone(name):
    assert all(str(port).startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


def test_what_is_mounted_from_here_is_here():
    sources = {volume.partition(":")[0] for each in SERVICES.values() for volume in each.get("volumes", ())}
    here = {source for source in sources if source.startswith("./")}
    assert len(here) >= 4 and all((ROOT / source).exists() for source in here)
    named = yaml.safe_load(COMPOSE_TEXT)["volumes"]
    assert sources - here == named.keys()


def test_prometheus_asks_the_server_and_grafana_asks_prometheus():
    made = files()
    scrape = yaml.safe_load(made["prometheus/prometheus.yml"])["scrape_configs"][0]
    host, _, port = scrape["static_configs"][0]["targets"][0].partition(":")
    assert host in SERVICES and SERVICES[host]["ports"][0].endswith(f":{port}")
    assert host == SERVICES[host]["environment"]["HEADRACE_ALLOWED_HOSTS"]
    assert host in SERVICES["headrace-gpu"]["networks"]["default"]["aliases"]
    key_file = Path(scrape["authorization"]["credentials_file"])
    assert f"> {key_file}" in SERVICES["prometheus"]["entrypoint"][2]
    assert SERVICES["prometheus"]["tmpfs"] == [f"{key_file.parent}:mode=1777"]
    (source,) = yaml.safe_load(made["grafana/provisioning/datasources/prometheus.yml"])["datasources"]
    host, _, port = source["url"].removeprefix("http://").partition(":")
    assert host in SERVICES and SERVICES[host]["ports"][0].endswith(f":{port}")
    (folder,) = yaml.safe_load(made["grafana/provisioning/dashboards/headrace.yml"])["providers"]
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    assert mounts["./configs/grafana/dashboards"] == folder["options"]["path"]


def test_traces_find_their_way_to_grafana():
    """From the server's variable over the collector to Jaeger, and from a histogram's point to Jaeger."""
    collector = yaml.safe_load((ROOT / "configs/tracing/collector.yml").read_text(encoding="utf-8"))
    (endpoint,) = re.findall(
        r"^#   OTEL_EXPORTER_OTLP_ENDPOINT=http://(\S+) docker compose", COMPOSE_TEXT, re.MULTILINE
    )
    host, _, port = endpoint.partition(":")
    assert collector["receivers"]["otlp"]["protocols"]["http"]["endpoint"] == f"0.0.0.0:{port}"
    assert SERVICES[host]["ports"][0].endswith(f":{port}")
    assert SERVICES[host]["volumes"] == [
        f"./configs/tracing/collector.yml:{SERVICES[host]['command'][0].removeprefix('--config=')}:ro"
    ]
    to, _, port = collector["exporters"]["otlp"]["endpoint"].partition(":")
    assert port == "4317" and SERVICES[to]["profiles"] == SERVICES[host]["profiles"] == ["tracing"]
    (pipeline,) = collector["service"]["pipelines"].values()
    for kind in ("receivers", "processors", "exporters"):
        assert pipeline[kind] == list(collector[kind])
    made = files()
    (traces,) = yaml.safe_load(made["grafana/provisioning/datasources/jaeger.yml"])["datasources"]
    (metrics,) = yaml.safe_load(made["grafana/provisioning/datasources/prometheus.yml"])["datasources"]
    assert [each["datasourceUid"] for each in metrics["jsonData"]["exemplarTraceIdDestinations"]] == [traces["uid"]]
    assert traces["url"] == f"http://{to}:{SERVICES[to]['ports'][0].rpartition(':')[2]}"


def test_the_load_is_one_that_the_tester_understands():
    service = SERVICES["load"]
    command, what, *arguments = service["entrypoint"][:3]
    assert (command, what, arguments) == ("headrace", "loadtest", ["replay"])
    options = replay_parser().parse_args([*service["entrypoint"][3:], *service["command"]])
    mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
    inside = str(options.trace)
    (path,) = (inside.replace(there, here, 1) for here, there in mounts.items() if inside.startswith(there))
    assert (ROOT / path).is_file() and options.annotate.endswith("@grafana:3000")


def test_the_image_has_every_package_and_nothing_else():
    copied = set(re.findall(r"^COPY (\w+) \1$", DOCKERFILE, re.MULTILINE))
    assert copied == set(PACKAGES)
    first, *rules = [
        line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line and line[0] != "#"
    ]
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    assert first == "*" and allowed == {*PACKAGES, "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}


def test_the_model_is_the_one_that_make_installs():
    (pinned,) = re.findall(r"^MODEL := (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert f" {pinned} " in DOCKERFILE


def test_the_health_check_asks_a_probe_that_needs_no_key():
    (path,) = re.findall(r"HEADRACE_PORT\\\"\]\}(/\w+)'", DOCKERFILE)
    assert [endpoint.probe and not endpoint.needs_key for endpoint in ENDPOINTS if endpoint.path == path] == [True]
