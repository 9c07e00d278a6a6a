"""Ways to share GPUs out among engines, in the order of their simplicity."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import Hardware, ModelSpec, SpecError
from scheduler.router.view import Role


@dataclass(frozen=True, slots=True)
class Layout:
    """Engines of `devices` GPUs each, one for each of the `roles`."""

    devices: int
    roles: tuple[Role, ...]

    @property
    def split(self) -> bool:
        """Whether any engine does not do all."""
        return set(self.roles) != {Role.MIXED}

    def __str__(self) -> str:
        """As `--roles` has it: `prefill:2,decode:6`."""
        return ",".join(f"{role}:{many}" for role, many in Counter(self.roles).items())

    def flags(self) -> list[str]:
        """Of `headrace serve`, to start it."""
        many = ["--roles", str(self)] if self.split else ["--engines", str(len(self.roles))]
        return [*many, "--tensor-parallel", str(self.devices)]


def layouts(hardware: Hardware, model: ModelSpec, gpus: int, block_size: int) -> list[Layout]:
    """All that use every GPU and on which the model fits: engines that do all, then those split by prefill and decode.

    All engines have equally many GPUs, as in a server, and those that are split have one: KV is handed over by way of a tier, and
    engines of several GPUs have none.

    Raises:
        SpecError: the model fits on none.
    """
    sizes = list(_sizes(hardware, model, gpus, block_size))
    mixed = [Layout(size, (Role.MIXED,) * (gpus // size)) for size in sizes]
    split = [
        Layout(1, (Role.PREFILL,) * prefill + (Role.DECODE,) * (gpus - prefill))
        for prefill in range(1, gpus if 1 in sizes else 1)
    ]
    return mixed + split


def named_layouts(named: Sequence[tuple[Role, ...]], gpus: int) -> list[Layout]:
    """Those of engines with these roles, which share the GPUs out evenly. Raises ValueError if they cannot."""
    for roles in named:
        if gpus % len(roles):
            raise ValueError(f"{gpus} GPUs cannot be shared out among {len(roles)} engines")
        if set(roles) != {Role.MIXED} and gpus != len(roles):
            raise ValueError(f"engines that are split have one GPU each: {len(roles)} engines have not {gpus}")
    return [Layout(gpus // len(roles), roles) for roles in named]


def _sizes(hardware: Hardware, model: ModelSpec, gpus: int, block_size: int) -> Iterator[int]:
    """GPUs that an engine may have: powers of two that divide them all, and over which the heads can be divided."""
    refusal, found = None, False
    size = 1
    while size <= gpus:
        if gpus % size == 0 and model.divides(size):
            try:
                CostModel(hardware, model, size).kv_blocks(block_size)
            except SpecError as error:
                refusal = error
            else:
                found = True
                yield size
        size *= 2
    if not found:
        raise refusal or SpecError(f"{model.name} cannot be divided over {gpus} x {hardware.name}")
