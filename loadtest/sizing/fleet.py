"""Sets of devices that can be bought: engines of one kind, and how they are set."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from loadtest.simulate.cost import CostModel
from loadtest.simulate.specs import KV_FORMATS, Hardware, ModelSpec, SpecError, with_kv
from scheduler.router.view import Role

AUTO, FP8 = KV_FORMATS


@dataclass(frozen=True, slots=True, order=True)
class Tuning:
    """Settings of an engine that cost nothing: tokens of a step, and sequences that run at a time."""

    max_step_tokens: int
    max_running: int


@dataclass(frozen=True, slots=True)
class FleetKind:
    """What all fleets have in common that differ by their size and settings.

    Attributes:
        hardware: the device.
        devices: of an engine (tensor parallelism).
        gpu_kv: `auto` (as the model has it, 16 bits) or `fp8`, as the server's setting.
        split: whether some engines compute prompts and the others decode.
    """

    hardware: Hardware = field(hash=False)  # it has mappings
    devices: int = 1
    gpu_kv: str = AUTO
    split: bool = False

    def model(self, model: ModelSpec) -> ModelSpec:
        """The model with its KV as this kind keeps it."""
        return with_kv(model, self.gpu_kv)

    def cost(self, model: ModelSpec) -> CostModel:
        """What steps cost on an engine. Raises SpecError if the model cannot run there."""
        return CostModel(self.hardware, self.model(model), self.devices)

    def engines(self, most: int) -> int:
        """The largest number of engines with at most so many devices."""
        return most // self.devices

    @property
    def least(self) -> int:
        """The smallest number of engines."""
        return 2 if self.split else 1

    def __str__(self) -> str:
        parts = [self.hardware.name]
        parts += [f"engines of {self.devices}"] if self.devices > 1 else []
        parts += ["prompts and decodes apart"] if self.split else []
        parts += ["KV in fp8"] if self.gpu_kv == FP8 else []
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A set that can be bought: an engine for each of the `roles`, all of one kind and tuned alike."""

    kind: FleetKind
    roles: tuple[Role, ...]
    tuning: Tuning

    @property
    def devices(self) -> int:
        """Of all engines."""
        return len(self.roles) * self.kind.devices

    @property
    def role_counts(self) -> str:
        """As `--roles` has it: `prefill:2,decode:6`."""
        return ",".join(f"{role}:{many}" for role, many in Counter(self.roles).items())

    def sized(self, engines: int) -> "Fleet":
        """The same with another number of engines, shared out between the roles as before."""
        if not self.kind.split:
            return replace(self, roles=(Role.MIXED,) * engines)
        prefill = Counter(self.roles)[Role.PREFILL] / len(self.roles)
        many = min(max(1, round(prefill * engines)), engines - 1)
        return replace(self, roles=(Role.PREFILL,) * many + (Role.DECODE,) * (engines - many))

    def simulate_flags(self, hardware: str) -> list[str]:
        """Of `headrace loadtest simulate`, for the same fleet of this `hardware`, as the option has it."""
        many = ["--roles", self.role_counts] if self.kind.split else ["--replicas", str(len(self.roles))]
        return ["--hardware", hardware, *many, "--devices", str(self.kind.devices), *self._shared_flags()]

    def serve_flags(self) -> list[str]:
        """Of `headrace serve`, to start it."""
        many = ["--roles", self.role_counts] if self.kind.split else ["--engines", str(len(self.roles))]
        return [*many, "--tensor-parallel", str(self.kind.devices), *self._shared_flags()]

    def _shared_flags(self) -> list[str]:
        flags = ["--max-step-tokens", str(self.tuning.max_step_tokens), "--max-running", str(self.tuning.max_running)]
        return [*flags, "--gpu-kv", FP8] if self.kind.gpu_kv == FP8 else flags

    def __str__(self) -> str:
        each = f" engines of {self.kind.devices}" if self.kind.devices > 1 else ""
        counts = Counter(self.roles)
        roles = " and ".join(f"{many} for {_WORK[role]}" for role, many in counts.items())
        many = f" ({roles})" if self.kind.split else ""
        kv = ", KV in fp8" if self.kind.gpu_kv == FP8 else ""
        prefix = f"{len(self.roles)}{each} x" if each else f"{len(self.roles)} x"
        return f"{prefix} {self.kind.hardware.name}{many}{kv}"

    @property
    def settings(self) -> str:
        """How its engines are set, in words."""
        return f"{self.tuning.max_step_tokens} tokens a step, {self.tuning.max_running} running"


_WORK = {Role.PREFILL: "prompts", Role.DECODE: "decodes", Role.MIXED: "both"}


def kinds_of(
    hardware: Hardware, model: ModelSpec, sizes: Sequence[int], kv_kinds: Sequence[str], *, split: bool, block_size: int
) -> Iterator[FleetKind]:
    """All kinds on which the model fits, the simplest first.

    Engines that are split have one device each: KV is handed over by way of a tier, and engines of several devices have none.

    Raises:
        SpecError: the model fits on none.
    """
    refusal: SpecError | None = None
    found = False
    for gpu_kv in kv_kinds:
        if gpu_kv == FP8 and FP8 not in hardware.operations_per_second:
            continue
        for apart in (False, True) if split else (False,):
            for devices in (1,) if apart else sizes:
                kind = FleetKind(hardware, devices, gpu_kv, apart)
                try:
                    kind.cost(model).kv_blocks(block_size)
                except SpecError as error:
                    refusal = error
                else:
                    found = True
                    yield kind
    if not found and refusal is not None:
        raise refusal
