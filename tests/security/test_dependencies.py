"""Every distribution that headrace and its extras can pull in has a tested version in constraints.txt."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.source_tree import ROOT

LINES = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
CONSTRAINTS = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, LINES)}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = ["", *PROJECT["optional-dependencies"]]
BOUNDED = {"torch"}  # constraints.txt says why


def pulled_in(extra: str) -> dict[str, list[str]]:
    """Each distribution that `headrace[extra]` needs here, with one way on which it comes in."""
    found: dict[str, list[str]] = {}
    own = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"].get(extra, [])]
    todo = [(Requirement(text), "", ["headrace"]) for text in own]
    done: set[tuple[str, str]] = set()
    while todo:
        requirement, wanted, way = todo.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": wanted}):
            continue
        found.setdefault(name, way)
        for inner in ("", *requirement.extras):
            if (name, inner) in done:
                continue
            done.add((name, inner))
            try:
                further = distribution(name).requires or []
            except PackageNotFoundError:
                continue  # another extra's, which is not installed here: its name is checked all the same
            todo += [(Requirement(text), inner, [*way, name]) for text in further]
    return found


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_an_extra_pulls_in_is_constrained(extra):
    free = {name: " -> ".join([*way, name]) for name, way in pulled_in(extra).items() if name not in CONSTRAINTS}
    assert free == {}


def test_each_constraint_is_one_version_and_stands_once():
    assert len(CONSTRAINTS) == len(LINES)
    for name, requirement in CONSTRAINTS.items():
        (only,) = requirement.specifier
        assert only.operator == ("<=" if name in BOUNDED else "=="), requirement
        assert requirement.url is None and requirement.marker is None


def test_the_constraints_satisfy_the_projects_own_bounds():
    own = [*PROJECT["dependencies"], *(text for texts in PROJECT["optional-dependencies"].values() for text in texts)]
    for requirement in map(Requirement, own):
        (only,) = CONSTRAINTS[canonicalize_name(requirement.name)].specifier
        assert Version(only.version) in requirement.specifier, requirement


def test_no_dependency_comes_from_an_address():
    for name in pulled_in("test"):
        try:
            further = distribution(name).requires or []
        except PackageNotFoundError:
            continue
        assert not [text for text in further if re.search(r"@\s*(?:git\+|https?:|file:)", text)], name


def test_everything_that_is_installed_from_the_index_is_installed_under_the_constraints():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^INSTALL = .*pip install .*-c constraints\.txt$", makefile, re.MULTILINE)
    bare = [line for line in makefile.splitlines() if "pip install" in line and not line.startswith("INSTALL =")]
    (peers,) = (line for line in bare if not line.lstrip().startswith(("#", '"', "@echo")))
    named = peers.partition(" -c constraints.txt ")[2].split()
    assert named and all(re.fullmatch(r"[\w-]+==[\d.]+", each) for each in named), "peers have versions of their own"
    (model,) = re.findall(r"^MODEL := (\S+)$", makefile, re.MULTILINE)
    assert "==" in model
