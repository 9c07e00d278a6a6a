"""llm: a model of extra-openai-models.yaml, from Python and from its command line; a schema, a chain of tools."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from asking import ABOUT, BASE, CHOSEN, GREETING, KEY, MODEL, WEATHER, City, get_weather, is_city, tell, was_asked

FOLDER = tempfile.TemporaryDirectory()
os.environ["LLM_USER_PATH"] = FOLDER.name
Path(FOLDER.name, "extra-openai-models.yaml").write_text(
    f"- model_id: here\n  model_name: {MODEL}\n  api_base: {BASE}\n  api_key_name: here\n"
    "  supports_schema: true\n  supports_tools: true\n"
)

import llm  # noqa: E402  reads the folder

HERE = llm.get_model("here")
HERE.key = KEY
SETTINGS = {"temperature": 0, "max_tokens": 80}


def plain():
    assert HERE.prompt(GREETING, stream=False, **SETTINGS).text()


def stream():
    assert "".join(HERE.prompt(GREETING, **SETTINGS)) == HERE.prompt(GREETING, stream=False, **SETTINGS).text()


def conversation():
    talk = HERE.conversation()
    assert talk.prompt(GREETING, **SETTINGS).text() and talk.prompt("Again.", **SETTINGS).text()


def schema():
    is_city(City.model_validate_json(HERE.prompt(ABOUT, schema=City, **SETTINGS).text()))


def tool_loop():
    was_asked(HERE.chain(WEATHER, tools=[get_weather], options=SETTINGS).text())


def command_line():
    command = [sys.executable, "-m", "llm", "-m", "here", "--key", KEY, "-o", "max_tokens", "16", GREETING]
    assert subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout.strip()


tell("llm", plain, stream, conversation, schema, command_line, *((tool_loop,) if CHOSEN else ()))
