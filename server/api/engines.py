"""`GET /v1/engines`, and what an operator may do to one of them: `POST /v1/engines/{engine}/drain`, `undrain`, `restart` and
`role`.

Each answers at once, with the engine as it is then. A restart goes on by itself: `restarting` says when it has ended.
"""

from collections.abc import Awaitable, Callable

from starlette.responses import Response

from scheduler.router.view import Role
from server.api.context import ServerContext
from server.api.endpoint import ActionEndpoint, Call, GetEndpoint, PostEndpoint, json_response
from server.api.tenants import Tenant, ensure_administers
from server.engines.client import EngineClient
from server.engines.supervision.keeper import KeeperReport
from server.errors import Conflict, EngineNotFound, for_clients
from server.schema.answers import EngineCard, EngineKv, EngineList, EngineLoad, EngineState, KeeperAnswer
from server.schema.roles import RoleBody

_CHANGE = "change engines"


def _card(client: EngineClient, context: ServerContext) -> EngineCard:
    status, stats, info = client.status, client.status.stats, client.status.info
    return EngineCard(
        id=client.name,
        role=client.role.value,
        state=state_of(client),
        restarting=context.restarts.pending(client.name),
        trouble=status.health().trouble,
        load=EngineLoad(running=stats.running, waiting=client.waiting),
        kv=EngineKv(
            blocks=stats.blocks_total, used=stats.blocks_used, cached=stats.blocks_cached, free=stats.blocks_free
        ),
        version=info.version if info else None,
        fingerprint=client.fingerprint if info else None,
        device=info.device if info else None,
    )


def state_of(client: EngineClient) -> EngineState:
    """An engine's state and what is asked of it, in one word for operators."""
    status = client.status
    if status.state != "ready":
        return status.state
    if status.hang is not None:
        return "hanging"
    if not status.draining:
        return "ready"
    return "draining" if client.open_count else "drained"


async def _list(call: Call) -> EngineList:
    context = call.context
    keeper, keepers = keepers_of(context)
    return EngineList(data=[_card(client, context) for client in context.engines], keeper=keeper, keepers=keepers)


def keepers_of(context: ServerContext) -> tuple[KeeperAnswer | None, dict[str, KeeperAnswer]]:
    """What operators are told of the keeper of this machine, if it has one, and of those of nodes, by their addresses."""
    reports = {} if context.keepers is None else context.keepers.reports()
    answers = {node: keeper_answer(report) for node, report in reports.items()}
    return answers.pop("", None), answers


def keeper_answer(report: KeeperReport) -> KeeperAnswer:
    """What operators are told of a keeper."""
    trouble = None if report.trouble is None else for_clients(report.trouble)
    return KeeperAnswer(state=report.state, trouble=trouble, restarts=sum(report.restarts.values()))


def engine_of(call: Call) -> EngineClient:
    """The engine that the path names.

    Raises:
        EngineNotFound: there is none of that name.
    """
    name = call.request.path_params["engine"]
    engines = call.context.engines.by_name
    if name not in engines:
        known = ", ".join(f"`{known}`" for known in engines)
        raise EngineNotFound(f"There is no engine `{name[:200]}`; there is {known}.")
    return engines[name]


def _drain(client: EngineClient, context: ServerContext) -> None:
    client.status.draining = True


def _undrain(client: EngineClient, context: ServerContext) -> None:
    if context.restarts.pending(client.name):
        raise Conflict(f"{client.name} is being restarted, and takes requests by itself when it is ready.")
    client.status.draining = False


def _restart(client: EngineClient, context: ServerContext) -> None:
    if client.status.state == "stopped":
        raise Conflict(f"{client.name} is stopped: the server is shutting down.")
    context.restarts.ask(client)


def _asked_role(body: RoleBody, context: ServerContext, tenant: Tenant) -> Role:
    ensure_administers(tenant, context.settings, _CHANGE)
    return Role(body.role)


async def _change_role(role: Role, call: Call) -> Response:
    client, settings = engine_of(call), call.context.settings
    if role is Role.PREFILL and not settings.kv_host_gib:
        raise Conflict("A prefill engine hands KV over by way of the host's tier, and there is none (kv_host_gib).")
    call.context.engines.change_role(client, role)
    return json_response(_card(client, call.context))


def _doing(act: Callable[[EngineClient, ServerContext], None]) -> Callable[[Call], Awaitable[EngineCard]]:
    async def answer(call: Call) -> EngineCard:
        ensure_administers(call.tenant, call.context.settings, _CHANGE)
        client = engine_of(call)
        act(client, call.context)
        return _card(client, call.context)

    return answer


_ENGINE = [{"name": "engine", "in": "path", "required": True, "schema": {"type": "string"}}]


def _action(
    name: str, summary: str, act: Callable[[EngineClient, ServerContext], None], *errors: int
) -> ActionEndpoint:
    return ActionEndpoint(
        path=f"/v1/engines/{{engine}}/{name}",
        tag="engines",
        summary=summary,
        answer=_doing(act),
        answers=EngineCard,
        errors=(401, 403, 404, *errors),
        parameters=_ENGINE,
    )


ENDPOINTS = (
    GetEndpoint(
        path="/v1/engines",
        tag="engines",
        summary="The engines behind the server: what each does, how much it has to do, what it is",
        answer=_list,
        answers=EngineList,
        errors=(401,),
        while_draining=True,
    ),
    _action("drain", "Give the engine no new requests; open ones go on", _drain),
    _action("undrain", "Give the engine requests again", _undrain, 409),
    _action(
        "restart",
        "Drain the engine, start it again, undrain it; one after the other. One that was given up is started anew",
        _restart,
        409,
    ),
    PostEndpoint(
        path="/v1/engines/{engine}/role",
        tag="engines",
        summary="Say what the engine is meant for: new requests heed it, open ones stay where they are",
        body=RoleBody,
        validate=_asked_role,
        answer=_change_role,
        answers=EngineCard,
        errors=(400, 401, 403, 404, 409),
        parameters=_ENGINE,
        examples={"mixed": {"value": {"role": "mixed"}}},
    ),
)
