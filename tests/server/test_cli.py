"""The headrace command: exit codes, what it prints where, and what it does not import."""

import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from configs.knob import knobs
from configs.settings import Settings
from engine.ipc.private_folder import NoFolder
from server.cli import main
from server.commands import COMMANDS, plugins, serve_parser
from server.other_flags import _MEANINGS, meaning_of
from server.telemetry import doctor

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch):
    for variable in [name for name in os.environ if name.startswith("HEADRACE_")]:
        monkeypatch.delenv(variable)


def imported_by(arguments: list[str]) -> set[str]:
    """Top-level packages that a fresh interpreter has imported after running the command."""
    code = (
        "import sys\nfrom server.cli import main\n"
        f"try: main({arguments!r})\nexcept SystemExit: pass\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]])
def test_help_lists_every_command(arguments, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in [*COMMANDS, "loadtest"])


def test_version_is_the_distributions(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"headrace {version('headrace')}\n"


def test_help_and_settings_import_nothing_heavy():
    assert not imported_by(["--help"]) & {"pydantic", "yaml", "fastapi", "uvicorn", "numpy", "torch"}
    assert not imported_by(["serve", "--help"]) & {"fastapi", "uvicorn", "numpy", "torch"}
    assert not imported_by(["serve", "--print-config"]) & {"fastapi", "uvicorn", "numpy", "torch"}


@pytest.mark.parametrize("name", [*COMMANDS, *plugins()])
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    assert f"headrace {name}" in capsys.readouterr().out


def test_serve_help_names_every_knob_with_default_and_variable():
    printed = " ".join(serve_parser().format_help().split())
    for knob in knobs().values():
        assert knob.flag in printed
        assert knob.variable in printed
        assert " ".join(knob.help.split())[:40] in printed


def test_print_config_shows_each_value_with_its_origin(capsys, monkeypatch, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("max_n: 4\n")
    monkeypatch.setenv("HEADRACE_MAX_STOP", "5")
    arguments = ["serve", "weights.gguf", "--config", str(file), "--port", "9", "--no-prefix-caching", "--print-config"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    values = yaml.safe_load(printed)
    chosen = {"model": "weights.gguf", "max_n": 4, "max_stop": 5, "port": 9, "prefix_caching": False}
    assert values == Settings().model_dump() | chosen
    origins = {line.split(":")[0]: line.rsplit("# ", 1)[1] for line in printed.splitlines()}
    assert [origins[name] for name in chosen] == [
        "argument MODEL",
        f"file {file}",
        "environment HEADRACE_MAX_STOP",
        "flag --port",
        "flag --prefix-caching",
    ]


def test_lists_as_flags_take_several_values_and_repeat(capsys):
    arguments = ["--served-model-name", "a", "b", "--served-model-name", "c", "--print-config"]
    assert main(["serve", *arguments]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["served_model_name"] == ["a", "b", "c"]


@pytest.mark.parametrize("flag", ["--api-key", "--served-model-name", "--key-names"])
@pytest.mark.parametrize("model", ["my-model.gguf", "./folder", "Qwen/Qwen3-0.6B", "a-folder"])
def test_a_list_does_not_swallow_the_model(flag, model, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-folder").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--port", "9", flag, "k1", model])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert f"{model!r} looks like MODEL, which comes first" in said and "k1" not in said


def test_a_list_takes_what_looks_like_a_model_where_it_cannot_be_one(capsys):
    names = ["--served-model-name", "a", "org/b", "--served-model-name", "org/c"]
    assert main(["serve", "x.gguf", *names, "--print-config"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["model"], values["served_model_name"]) == ("x.gguf", ["a", "org/b", "org/c"])
    origins = ["https://a.example", "https://b.example"]
    assert main(["serve", "--cors-origins", *origins, "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["cors_origins"] == origins


def test_config_may_be_repeated(capsys, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text("max_running: 3\n")
    assert main(["serve", "--config", "small", "--config", str(file), "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["max_running"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serv"], "unknown command 'serv'"),
        (["serve", "--prot", "9"], "unknown flag --prot. Did you mean --port?"),
        (["serve", "--kv-block=9"], "unknown flag --kv-block=9. Did you mean --kv-blocks?"),
        (["serve", "-m", "x.gguf"], "unknown flag -m. The model is the argument MODEL"),
        (["serve", "--ctx-size=9"], "unknown flag --ctx-size=9. Here it is --max-model-len."),
        (["serve", "--lora", "x"], "unknown flag --lora. Adapters are not served."),
        (["serve", "a", "b"], "unexpected argument 'b'"),
        (["serve", "--port", "70000"], "port (from flag --port): '70000' is refused; it must be an integer from 0 to"),
        (["serve", "--block-size", "33"], "'33' is refused; it must be one of 8, 16, 32, 64, 128"),
        (["serve", "--config", "no/such.yaml"], "no/such.yaml: no such file"),
        (["serve", "no/such/model.gguf"], "no/such/model.gguf"),
    ],
)
def test_a_wrong_call_is_one_sentence_and_exit_code_two(arguments, said, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert said in printed.err
    assert not printed.out


def test_what_other_servers_flags_are_called_here_exists_and_they_themselves_do_not():
    known = {option for action in serve_parser()._actions for option in action.option_strings}
    for flag, meaning in _MEANINGS.items():
        assert flag not in known
        assert meaning in known or not meaning.startswith("-")
        assert re.fullmatch(r" [A-Z].*\.", meaning_of(flag))
    assert meaning_of("--nothing") == ""


def test_a_flag_without_its_value_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--port"])
    assert stopped.value.code == 2
    assert "--port" in capsys.readouterr().err


def test_doctor_finds_everything_here(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert "FAIL" not in printed
    for subject in (
        "Python",
        "headrace",
        "torch",
        "PyTorch loads",
        "C++ kernels",
        "CPU",
        "memory",
        "embedded model",
        "device",
    ):
        assert f"  {subject} " in printed


def test_doctor_says_what_bounds_cores_and_memory():
    cpu, memory, device = doctor.machine(doctor.probe("-m", doctor.MACHINE_PROBE, "--device"))
    assert re.match(r"\d+ cores \(.+\), ", cpu.detail)
    assert re.fullmatch(r"[\d.]+ GiB available \(.+\) of [\d.]+ GiB", memory.detail)
    assert device.detail.startswith(("the CPU: ", "a GPU: "))
    (unknown,) = doctor.machine(doctor.probe("-m", "a.module.that.nobody.has"))
    assert unknown.fatal and "No module named" in unknown.detail


def test_doctor_says_that_nothing_can_be_written_to(monkeypatch):
    def nowhere():
        raise NoFolder("no folder can be written to")

    assert not doctor.folder().fatal
    monkeypatch.setattr(doctor, "temporary_folder", nowhere)
    assert doctor.folder().fatal and "no folder can be written to" in doctor.report([doctor.folder()])


def test_doctor_fails_where_the_distribution_is_absent():
    (finding,) = doctor.packages("a-distribution-that-nobody-has-installed")
    assert finding.fatal and "make setup" in finding.lost
    assert "Serving is not possible" in doctor.report([finding])


def test_doctor_misses_no_compiler_where_the_kernels_are_built(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "not needed" in doctor.compiler(built=True).detail and not doctor.compiler(built=True).lost
    assert "apt install g++" in doctor.compiler(built=False).lost


def test_doctor_says_what_is_lost_with_an_old_cpu_and_little_memory(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: Old One\nflags\t\t: sse sse2\n")
    assert "AVX2" in doctor.cpu(2, "all", cpuinfo).lost
    cpuinfo.write_text("model name\t: New One\nflags\t\t: sse avx2 avx512f avx512_vnni\n")
    assert doctor.cpu(2, "all", cpuinfo) == doctor.Finding("CPU", doctor.cpu(2, "all", cpuinfo).detail)
    assert doctor.cpu(2, "all", cpuinfo).detail.endswith("New One, AVX2 AVX-512 AVX-512 VNNI")
    assert "small" in doctor.memory(2**30, "all", 2**31).lost
    assert not doctor.memory(2**33, "all", 2**34).lost


@pytest.mark.parametrize("arguments", [["--version"], ["serve", "--print-config"]])
def test_a_reader_that_has_gone_is_no_traceback(arguments):
    read, write = os.pipe()
    os.close(read)
    code = "import sys; from server.cli import main; sys.exit(main())"
    with os.fdopen(write, "wb") as gone:
        line = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(line, stdout=gone, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (141, "")
