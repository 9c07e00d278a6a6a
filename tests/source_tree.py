"""What the sources import, read from their text: the modules of the tree, the arrows between them, and circles of arrows."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "scheduler", "engine", "kernels", "configs", "loadtest")
Arrows = Mapping[str, Iterable[str]]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


@cache
def imports(path: Path) -> tuple[tuple[int, str], ...]:
    """Line and full dotted name of everything imported, wherever in the file: also late, only for type checking, or by a name
    that a constant of the module holds."""
    return tuple(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif is_import_call(node, tree(path)):
            yield from ((node.lineno, name) for name in imported_by_name(node, tree(path)))


def unfollowed(path: Path) -> list[int]:
    """Lines that import something whose name the text does not tell."""
    calls = [node for node in ast.walk(tree(path)) if is_import_call(node, tree(path))]
    return [call.lineno for call in calls if not imported_by_name(call, tree(path))]


# What imports by a name that is a value: by the name alone where it is built in, else by that of its module.
BY_NAME = (
    "importlib.import_module",
    "importlib.__import__",
    "pkgutil.resolve_name",
    "runpy.run_module",
    "runpy.run_path",
)
BUILT_IN = ("__import__", "exec", "eval")


def is_import_call(node: ast.AST, module: ast.Module) -> TypeGuard[ast.Call]:
    """Whether it imports by name, under whatever name it does."""
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Attribute):
        return node.func.attr in {name.rpartition(".")[2] for name in BY_NAME}
    called = getattr(node.func, "id", "")
    return called in BUILT_IN or full_names(module).get(called) in BY_NAME


@cache
def full_names(module: ast.Module) -> dict[str, str]:
    """What `from M import N as X` has bound: X to M.N."""
    found = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in found for alias in node.names}


def imported_by_name(call: ast.Call, module: ast.Module) -> list[str]:
    """The names in a call that imports: as text, or in the module's constants that its argument is, or is taken from."""
    argument = next(iter([*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "name")]), None)
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    while isinstance(argument, ast.Subscript):
        argument = argument.value
    if not isinstance(argument, ast.Name):
        return []
    values = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and argument.id in assigned(node)
    ]
    texts = [node.value for value in values for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and is_module_name(text)]


def is_module_name(text: str) -> bool:
    """Dotted, or a module that is there."""
    return bool(re.fullmatch(r"\w+(\.\w+)+", text)) or (text.isidentifier() and find_spec(text) is not None)


def assigned(node: ast.Assign | ast.AnnAssign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def module_arrows(paths: Iterable[Path], root: Path = ROOT) -> dict[str, set[str]]:
    """For each module, those of `paths` that it imports; a name in a module counts for the module."""
    modules = {module_name(path, root): path for path in paths}
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        found = {nearest(name, modules) for _, name in imports(path)}
        arrows[module] = {name for name in found if name and name != module}
    return arrows


def nearest(name: str, modules: Mapping[str, Path]) -> str:
    """The module itself, or the one that holds the name; empty if it is none of ours."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def arrows_inside(folder: str, arrows: Arrows) -> dict[str, set[str]]:
    """The same between what stands directly in a folder, named by dots: its modules, and its packages as one each."""
    depth = folder.count(".") + 2
    merged: dict[str, set[str]] = defaultdict(set)
    for module, imported in arrows.items():
        for name in imported:
            ends = [".".join(end.split(".")[:depth]) for end in (module, name) if end.startswith(f"{folder}.")]
            if len(ends) == 2 and ends[0] != ends[1]:
                merged[ends[0]].add(ends[1])
    return merged


def reached(start: str, arrows: Arrows, through: Iterable[str]) -> set[str]:
    """The nodes that `start` leads to, directly or by way of those of `through`."""
    found, ahead = set[str](), [start]
    while ahead:
        for target in set(arrows.get(ahead.pop(), ())) - found:
            found.add(target)
            ahead += [target] if target in through else []
    return found


def class_names(path: Path) -> Iterator[str]:
    """Of classes that are declared, and of those that a call makes: `Row = NamedTuple("Row", ...)`."""
    makers = (
        "NamedTuple",
        "namedtuple",
        "TypedDict",
        "make_dataclass",
        "Enum",
        "IntEnum",
        "StrEnum",
        "NewType",
        "type",
    )
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Call) and len(node.args) + len(node.keywords) > 1:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in makers and node.args and isinstance(node.args[0], ast.Constant):
                yield str(node.args[0].value)


def circle(arrows: Arrows) -> list[str]:
    """Some nodes that lead in a circle, the first also last; empty if there is none."""
    done, way = set[str](), list[str]()

    def follow(node: str) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node in done:
            return []
        way.append(node)
        for target in sorted(arrows.get(node, ())):
            if found := follow(target):
                return found
        done.add(way.pop())
        return []

    return next((found for node in sorted(arrows) if (found := follow(node))), [])
