"""instructor: each of its modes for such a server, partial objects while they stream, lists, and asking again after a mistake."""

import instructor
import openai
from asking import ABOUT, BASE, CHOSEN, KEY, MODEL, City, is_city, tell
from pydantic import BaseModel, field_validator

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, max_retries=0, timeout=300)
MODES = (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.JSON)
SETTINGS = {"model": MODEL, "temperature": 0, "max_tokens": 120, "messages": [{"role": "user", "content": ABOUT}]}
refused: list[str] = []


class RefusedOnce(City):
    """A city that is not taken the first time."""

    @field_validator("name")
    @classmethod
    def _not_at_once(cls, name):
        if not refused:
            refused.append(name)
            raise ValueError("say it again")
        return name


class Cities(BaseModel):
    """Some."""

    cities: list[City]


def modes():
    for mode in MODES if CHOSEN else MODES[:2]:
        is_city(instructor.from_openai(CLIENT, mode=mode).chat.completions.create(response_model=City, **SETTINGS))


def partial():
    client = instructor.from_openai(CLIENT, mode=instructor.Mode.JSON_SCHEMA)
    parts = list(client.chat.completions.create_partial(response_model=City, **SETTINGS))
    assert len(parts) > 1 and parts[-1].inhabitants is not None


def asked_again():
    client = instructor.from_openai(CLIENT, mode=instructor.Mode.TOOLS)
    assert client.chat.completions.create(response_model=RefusedOnce, max_retries=2, **SETTINGS).name
    assert refused


async def asynchronous():
    client = instructor.from_openai(openai.AsyncOpenAI(base_url=BASE, api_key=KEY), mode=instructor.Mode.TOOLS)
    is_city(await client.chat.completions.create(response_model=City, **SETTINGS))


tell("instructor", modes, partial, asked_again, asynchronous)
