"""The body of `POST /v1/engines/{engine}/role`."""

from typing import Literal

from pydantic import Field

from server.schema.base import Body


class RoleBody(Body):
    """What an engine shall be meant for."""

    role: Literal["mixed", "prefill", "decode"] = Field(description="What the engine is meant for from now on.")
