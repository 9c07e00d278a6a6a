"""What the sources import, read from their text: the modules of the tree, the arrows between them, and circles of arrows."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("server", "scheduler", "engine", "kernels", "configs", "loadtest")
Arrows = Mapping[str, Iterable[str]]


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything imported, wherever in the file: also late, only for type checking, or by a name
    that a constant of the module holds."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif is_import_call(node):
            yield from ((node.lineno, name) for name in imported_by_name(node, tree(path)))


def unfollowed(path: Path) -> list[int]:
    """Lines that import something whose name the text does not tell."""
    calls = [node for node in ast.walk(tree(path)) if is_import_call(node)]
    return [call.lineno for call in calls if not imported_by_name(call, tree(path))]


def is_import_call(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call) or not node.args:
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return called in ("import_module", "__import__")


def imported_by_name(call: ast.Call, module: ast.Module) -> list[str]:
    """The names in a call of `import_module`: as text, or in the module's constants that the argument is taken from."""
    argument = call.args[0]
    if isinstance(argument, ast.Constant):
        return [str(argument.value)]
    used = {node.id for node in ast.walk(argument) if isinstance(node, ast.Name)}
    values = [
        node.value
        for node in module.body
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None and assigned(node) & used
    ]
    texts = [node.value for value in values for node in ast.walk(value) if isinstance(node, ast.Constant)]
    return [text for text in texts if isinstance(text, str) and re.fullmatch(r"\w+(\.\w+)+", text)]


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
