"""What the scripts of the clients share: whom they ask, what they ask, and how they tell what came of it.

A script is run by the Python that its client is installed in: `ask_NAME.py URL MODEL chosen|forced`. With a model that calls tools
of itself (`chosen`), a loop is left to it; a small one (`forced`) is told to call, and what it calls with is constrained.
"""

import inspect
import json
import sys
import time
import traceback
from asyncio import run
from collections.abc import Callable
from importlib.metadata import version
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

URL, MODEL, _calls = sys.argv[1:4]
BASE = f"{URL}/v1"
KEY = "unused"
CHOSEN = _calls == "chosen"
GREETING = "Say hello in three words."
ABOUT = "Paris is a city in France with about 2100000 inhabitants. Describe it."
WEATHER = "What is the weather in Paris? Use the tool, then answer in one short sentence."
CITIES = Literal["Paris", "Rome"]
CHOICE = "auto" if CHOSEN else {"type": "function", "function": {"name": "get_weather"}}  # in a loop's first turn
FOUND = "18 degrees and sunny"
asked: list[str] = []  # the cities that the tool was called with


class City(BaseModel):
    """A city. Every field is bounded, so that a small model ends its answer, too."""

    model_config = ConfigDict(extra="forbid")

    name: CITIES
    country: Literal["France", "Italy"]
    inhabitants: int = Field(ge=0, le=99_999_999)


def get_weather(city: CITIES) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    asked.append(city)
    return f"{FOUND} in {city}"


TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}


def is_city(city: Any) -> None:
    """It is one, and where the model can read it is Paris."""
    assert isinstance(city, City), city
    assert not CHOSEN or (city.name, city.country) == ("Paris", "France"), city


def was_asked(answer: str | None) -> None:
    """The tool was called, and an answer came after it."""
    calls = asked.copy()
    asked.clear()
    assert calls, f"no call; the answer is {answer!r}"
    assert not CHOSEN or "Paris" in calls, calls
    assert answer, "no answer after the call"
    assert not CHOSEN or "18" in answer or "sunny" in answer, answer


def tell(package: str, *checks: Callable[[], Any]) -> None:
    """Run the checks, each alone, and print a line of JSON for each: name, seconds, and where it failed why."""
    print(json.dumps({"package": package, "version": version(package)}), flush=True)
    for check in checks:
        asked.clear()
        begun = time.monotonic()
        line: dict[str, Any] = {"check": check.__name__}
        try:
            result = check()
            if inspect.isawaitable(result):
                run(_until(result))
        except Exception as error:  # of whatever kind the client raises
            line["trouble"] = f"{type(error).__name__}: {error}"[:2000]
            traceback.print_exc()
        print(json.dumps(line | {"seconds": round(time.monotonic() - begun, 2)}), flush=True)


async def _until(result: Any) -> None:
    await result
