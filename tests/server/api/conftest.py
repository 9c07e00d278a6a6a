"""What tests of tools in a dialect share."""

import pytest

from server.structured.compiler import Compiled, GrammarCompiler
from tests.server.api import scripted


@pytest.fixture
def room_for_tools(monkeypatch):
    """A token is a byte here, and tools have many."""
    monkeypatch.setattr(scripted, "CONTEXT", 8192)


@pytest.fixture
def grammars(monkeypatch):
    """Those that were asked for; what compiles them is a process, and what they let through is tested by themselves."""
    found = []

    async def compiled(self, grammar, engine, owner):
        found.append(grammar)
        return Compiled("a grammar", "vocabulary")

    monkeypatch.setattr(GrammarCompiler, "compile", compiled)
    return found
