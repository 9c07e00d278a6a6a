"""What the pages name exists: files, folders, dotted names, classes, anchors, lines quoted from tests; and each seam is told of."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.source_tree import PACKAGES, ROOT, tree
from tests.test_shape import LAYERS, RULES

MAX_SPINE = 20
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE, EXTENDING = ROOT / "docs" / "architecture.md", ROOT / "docs" / "extending.md"
KINDS = (".py", ".md", ".h", ".cpp", ".yaml", ".toml")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def words(text: str) -> list[str]:
    """What stands in backticks, without the blocks of code; of a call its name."""
    return [found.partition("(")[0] for found in re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]


@cache
def files() -> list[Path]:
    """Of the project, below the root."""
    found = [path for folder in (*PACKAGES, "tests", "docs") for path in (ROOT / folder).rglob("*") if path.is_file()]
    return [path.relative_to(ROOT) for path in [*found, *ROOT.glob("*.*")]]


@cache
def endings() -> set[str]:
    """Every way to name a file or a folder (with a slash behind it) by the end of its path."""
    paths = [(path.parts, "") for path in files()] + [(path.parent.parts, "/") for path in files()]
    return {"/".join(parts[at:]) + slash for parts, slash in paths for at in range(len(parts))}


def is_path(word: str) -> bool:
    """A file of ours by its kind; a folder where it is one of several in a path, or of the packages."""
    folder = word.endswith("/") and word.partition("/")[0] in {*PACKAGES, "tests", "docs"}
    return bool(re.fullmatch(r"\w[\w./-]*", word)) and (folder or word.endswith(KINDS))


def is_dotted(word: str) -> bool:
    """Names that begin with one of our packages or with a class: others are fields of JSON, or someone else's."""
    first = word.partition(".")[0]
    return bool(re.fullmatch(r"[A-Za-z_]\w*(\.\w+)+", word)) and (first in (*PACKAGES, "tests") or first in classes())


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for path in files():
        if path.suffix == ".py" and path.parts[0] in PACKAGES:
            for node in ast.walk(tree(ROOT / path)):
                if isinstance(node, ast.ClassDef):
                    found.setdefault(node.name, []).append(node)
    return found


def members(node: ast.ClassDef) -> Iterator[str]:
    """Names that a class defines, those that its methods set in `self` included."""
    yield from named(node.body)
    for each in ast.walk(node):
        if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store) and ast.unparse(each.value) == "self":
            yield each.attr


def named(body: list[ast.stmt]) -> Iterator[str]:
    for node in body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Assign(targets=targets):
                yield from (each.id for each in targets if isinstance(each, ast.Name))
            case ast.AnnAssign(target=ast.Name(name)):
                yield name


def exists(dotted: str) -> bool:
    """A module, a name in one, a member of a class in one, or a member of a class by the class's own name."""
    first, *rest = dotted.split(".")
    if first in classes() and rest:
        return len(rest) == 1 and any(rest[0] in members(node) for node in classes()[first])
    parts, body = dotted.split("."), list[str]()
    while parts and not (module := ROOT.joinpath(*parts).with_suffix(".py")).is_file():
        if ROOT.joinpath(*parts).is_dir() and not body:
            return True
        body.insert(0, parts.pop())
    if not parts or not body:
        return bool(parts)
    top = tree(module).body
    known = body[0] in named(top)
    return known and (len(body) == 1 or any(body[1] in members(node) for node in classes().get(body[0], ())))


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w -]", "", heading.strip().lower()).replace(" ", "-")


def spine() -> list[tuple[str, str, str]]:
    """Number, file and name of each line in the two tables of a completion's life; a number with a letter is called by its file."""
    text = ARCHITECTURE.read_text(encoding="utf-8")
    return re.findall(r"^\| (\d+[a-z]?) \| `([^`]+)` \| `([^`]+)` \|", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_and_name_in_backticks_exists(page):
    found = words(page.read_text(encoding="utf-8"))
    assert not sorted({word for word in found if is_path(word)} - endings())
    assert not [word for word in found if is_dotted(word) and not exists(word)]


@pytest.mark.parametrize("page", [ARCHITECTURE, EXTENDING], ids=lambda page: page.name)
def test_every_class_in_backticks_is_ours(page):
    found = {word for word in words(page.read_text(encoding="utf-8")) if re.fullmatch(r"([A-Z][a-z]+)+", word)}
    assert found and not sorted(found - classes().keys())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_is_a_heading(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        text = (page.parent / target if target else page).read_text(encoding="utf-8")
        assert anchor in {slug(heading) for heading in re.findall(r"^#+ (.*)$", FENCE.sub("", text), re.MULTILINE)}


@pytest.mark.parametrize(
    ("word", "there"),
    [
        ("scheduler.types", True),
        ("scheduler.scheduler.Scheduler", True),
        ("scheduler.scheduler.Scheduler.add", True),
        ("Scheduler.add", True),
        ("ChunkResult.token_ids", True),
        ("CpuSampler._edits", True),
        ("scheduler.nothing", False),
        ("scheduler.scheduler.Scheduling", False),
        ("scheduler.scheduler.Scheduler.adds", False),
        ("Scheduler.adds", False),
    ],
)
def test_a_name_that_is_gone_is_found(word, there):
    assert is_dotted(word) and exists(word) is there


@pytest.mark.parametrize(
    ("word", "path", "there"),
    [
        ("server/app.py", True, True),
        ("csrc/attention.h", True, True),
        ("scheduler/kv/", True, True),
        ("server/apple.py", True, False),
        ("erver/app.py", True, False),
        ("/v1/completions", False, False),
        ("run.json", False, False),
    ],
)
def test_a_path_that_is_gone_is_found(word, path, there):
    assert is_path(word) is path and (word in endings()) is there


def test_the_spine_is_short_and_each_file_has_one_number():
    lines = spine()
    named_by = {number: file for number, file, _ in lines}
    assert {(number, file) for number, file, _ in lines} == set(named_by.items())
    assert len(set(named_by.values())) == len(named_by) and set(named_by.values()) <= {str(path) for path in files()}
    hands = [int(number) for number in named_by if number.isdigit()]
    assert hands == list(range(1, len(hands) + 1)) and len(hands) <= MAX_SPINE


def test_the_token_comes_home_through_the_same_doors():
    hands = [int(number) for number, _, _ in spine() if number.isdigit()]
    farthest = hands.index(14)
    assert [number for number in hands[farthest + 1 :] if number < 14] == [12, 13, 11, 10, 9, 7, 3, 2, 1]


def test_what_is_called_on_the_way_stands_below_its_caller():
    lines = [number for number, _, _ in spine()]
    called = [at for at, number in enumerate(lines) if not number.isdigit()]
    assert called and all(lines[at - 1].rstrip("ab") == lines[at][:-1] for at in called)


def test_the_tree_has_every_folder():
    listed = set(words(ARCHITECTURE.read_text(encoding="utf-8")))
    folders = {path.parent.relative_to(ROOT) for folder in PACKAGES for path in (ROOT / folder).rglob("__init__.py")}
    below = [
        folder for folder in folders if not folder.is_relative_to("kernels/gpu") or folder.parent.name == "kernels"
    ]
    assert not sorted(f"{folder}/" for folder in below if f"{folder}/" not in listed)


def test_the_tables_of_imports_are_those_that_are_enforced():
    table, layers = ARCHITECTURE.read_text(encoding="utf-8").partition("| folder | may import")[2].split("| within |")
    for folder, rule in RULES.items():
        (cell,) = re.findall(rf"^\| `{folder}/` \| (.*) \|$", table, re.MULTILINE)
        assert {word for word in words(cell) if word.partition(".")[0] in PACKAGES} == rule.ours, folder
    for folder in ("server", "scheduler", "engine", "kernels", "kernels.gpu", "loadtest"):
        order = ", ".join(f"`{name}`" for name in LAYERS[folder])
        assert re.search(rf"`{folder.replace('.', '/')}/`(?: \||:) {order}", layers), folder


def test_every_seam_is_told_of():
    text = EXTENDING.read_text(encoding="utf-8")
    seams = [str(path) for path in files() if path.name.startswith("test_seam_") and path.suffix == ".py"]
    assert len(seams) >= 10 and not [seam for seam in seams if f"`{seam}`" not in text]


def quoted() -> list[tuple[str, str]]:
    """Of each block of Python, the test that its first line names, and the lines."""
    blocks = [code for kind, code in FENCE.findall(EXTENDING.read_text(encoding="utf-8")) if kind == "python"]
    return [(code.partition("\n")[0].removeprefix("# "), code.partition("\n")[2]) for code in blocks]


@pytest.mark.parametrize(("test", "code"), quoted(), ids=[Path(test).stem for test, _ in quoted()])
def test_what_is_quoted_stands_in_the_test_in_this_order(test, code):
    lines = iter((ROOT / test).read_text(encoding="utf-8").splitlines())
    missing = next((line for line in code.splitlines() if line and line not in lines), None)
    assert missing is None
