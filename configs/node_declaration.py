"""Knobs of engines on several machines, declared as those of `configs/declaration.py` are."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic.config import JsonDict

from configs.batch_declaration import BatchDeclaration
from configs.declaration import PositiveInt

NODES: JsonDict = {"section": "several machines"}
_ADDRESS = re.compile(r"auto|(\[[0-9a-fA-F:]+\]|[^:/\s\[\]]+):\d{1,5}")
_FORM = "HOST:PORT of the cluster's head, as in 10.0.0.1:6379, or auto"


def _check_address(text: str) -> str:
    if not _ADDRESS.fullmatch(text):
        raise ValueError(f"must be {_FORM}, got {text!r}")
    return text


ClusterAddress = Annotated[str, AfterValidator(_check_address), Field(description=_FORM)]


class NodeDeclaration(BatchDeclaration):
    """All knobs, each valid by itself."""

    ray: ClusterAddress | None = Field(
        None,
        description="The Ray cluster whose nodes run the engines: HOST:PORT of its head; `auto`, or no address, is the one that "
        "this machine belongs to. None: engines run on this machine. Needs the extra `ray`.",
        json_schema_extra=NODES | {"bare": "auto"},
    )
    gpus_per_engine: int = Field(
        0,
        ge=0,
        description="GPUs of one node that Ray reserves for each engine, as many as tensor_parallel says. 0: engines compute on "
        "CPUs.",
        json_schema_extra=NODES,
    )
    kv_transfer: Literal["curve", "nixl"] = Field(
        "curve",
        description="How KV goes from node to node. `curve`: encrypted, to nodes of this server alone. `nixl`: NIXL reads it over "
        "UCX, by RDMA where there is a card for it; neither encrypted nor guarded by keys, so for a network of its own. Needs the "
        "extra `nixl` on each node.",
        json_schema_extra=NODES,
    )
    cpus_per_engine: PositiveInt = Field(
        1,
        description="CPUs of a node, as Ray counts them, that are reserved for each engine: the cores that it keeps busy.",
        json_schema_extra=NODES,
    )
