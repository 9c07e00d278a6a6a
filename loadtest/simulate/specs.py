"""What the cost model knows about a device and a model: typed, validated, read from YAML.

Such files are in `configs/presets/hardware` and `configs/presets/models`. A file is named by its path or, in those two folders,
by its stem (`h200`). Unknown keys, missing keys and impossible values are refused; the error names the file.
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml

KV_FORMATS = ("auto", "fp8")  # as the model has it, or in 8 bits: the server's `--gpu-kv`
CONFIGS = Path(__file__).parents[2] / "configs" / "presets"
_T = TypeVar("_T")
# Numbers that may be 0, beside the fitted constants: what a single device does not have.
_MAY_BE_ZERO = frozenset(("link_bytes_per_second", "link_seconds", "price_per_hour"))


class SpecError(ValueError):
    """A description that cannot be used; the message names the file, the key and what is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The fitted constants. `matrices` and `attention` multiply rooflines (1 = the device's peak), the others are seconds.

    Attributes:
        step: for every step, whatever is in it (launches, Python, one round of the loop).
        token: for each token computed.
        sequence: for each sequence of a step (its sampling, its event, its way through the HTTP process).
        matrices: factor on the roofline of all matrix products.
        attention: factor on the roofline of attention.
        request: from sending a request until the scheduler has it.
        delivery: from the end of a step until the client has its tokens.
        repeat_begins, repeat_ends: chances at each token of an answer that it begins to repeat itself, and that it ceases to: what
            guesses find (`RepeatingAnswers`). Of the model and its texts rather than of the device; 0: nothing is guessed.
    """

    step: float
    token: float
    sequence: float
    matrices: float
    attention: float
    request: float
    delivery: float
    repeat_begins: float = 0.0
    repeat_ends: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """One device (a replica may have several of the same kind).

    Attributes:
        memory_bytes: for weights, KV and activations.
        memory_share: the share of it that weights and KV may take.
        memory_bytes_per_second: read bandwidth.
        operations_per_second: dense peak, by the type that the matrix products compute in; a multiply-add is two operations.
        attention_operations_per_second: the same for attention.
        link_bytes_per_second: between the devices of a replica, in one direction; 0 if a replica is one device.
        link_seconds: latency of one all-reduce.
        tier_bytes_per_second: of KV transfers between the device and `host`, `disk`, `peer`.
        costs: the constants.
        fitted: whether they were fitted to measured runs.
        source: where all other figures are from, the constants excepted unless they were fitted.
        price_per_hour: of one device, in US dollars; 0: unknown.
        price_source: where that is from.
    """

    name: str
    memory_bytes: float
    memory_share: float
    memory_bytes_per_second: float
    operations_per_second: dict[str, float]
    attention_operations_per_second: float
    link_bytes_per_second: float
    link_seconds: float
    tier_bytes_per_second: dict[str, float]
    costs: Costs
    fitted: bool = False
    source: str = ""
    price_per_hour: float = 0.0
    price_source: str = ""

    def with_costs(self, costs: Costs) -> "Hardware":
        """The same device with constants that were fitted to it."""
        return replace(self, costs=costs, fitted=True)

    def times(self, number: int) -> "Hardware":
        """One device that is as large and as fast as so many of these together, if all work could be divided among them."""
        return replace(
            self,
            memory_bytes=self.memory_bytes * number,
            memory_bytes_per_second=self.memory_bytes_per_second * number,
            operations_per_second={kind: rate * number for kind, rate in self.operations_per_second.items()},
            attention_operations_per_second=self.attention_operations_per_second * number,
            costs=replace(
                self.costs,
                step=self.costs.step / number,
                token=self.costs.token / number,
                sequence=self.costs.sequence / number,
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder as the cost model sees it.

    Attributes:
        intermediate_size: of a layer's MLP, or of one expert.
        max_position: the longest context it is made for, in tokens.
        weight_bits: bits per weight in the layers, scales included.
        head_bits: bits per weight of the output head.
        compute: the type of the matrix products, a key of `Hardware.operations_per_second`.
        kv_bits: bits per element of a key or value.
        mlp_matrices: of an MLP: 3 with a gate, else 2.
        experts, experts_per_token: of a layer, and of these those that a token goes through; 1 each: the model is dense.
        shared_intermediate_size: of the experts that every token goes through, together.
        dense_layers, dense_intermediate_size: layers of a mixture that have one MLP, and its size.
    """

    name: str
    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    tied_head: bool
    max_position: int
    weight_bits: float
    head_bits: float
    compute: str
    kv_bits: int
    mlp_matrices: int = 3
    experts: int = 1
    experts_per_token: int = 1
    shared_intermediate_size: int = 0
    dense_layers: int = 0
    dense_intermediate_size: int = 0

    @property
    def layer_weights(self) -> int:
        """Number of weights in all layers' matrices."""
        return self._always + self.experts * self._expert

    @property
    def active_weights(self) -> int:
        """Number of these that multiply a token."""
        return self._always + self.experts_per_token * self._expert

    def read_weights(self, tokens: int) -> float:
        """Number of these that a step with so many tokens reads, if each token goes through experts drawn evenly."""
        if self.experts == 1:
            return self.layer_weights
        missed = (1 - self.experts_per_token / self.experts) ** tokens
        return self._always + self.experts * (1 - missed) * self._expert

    @property
    def _expert(self) -> int:
        """Weights of one expert in all layers that have any; of a dense model, of all MLPs."""
        return (self.layers - self.dense_layers) * self.mlp_matrices * self.hidden_size * self.intermediate_size

    @property
    def _always(self) -> int:
        """Weights that multiply every token: attention, MLPs without experts, shared experts, and what chooses experts."""
        mixed = self.layers - self.dense_layers if self.experts > 1 else 0
        attention = self.layers * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        mlps = self.dense_layers * self.dense_intermediate_size + mixed * self.shared_intermediate_size
        return self.hidden_size * (attention + self.mlp_matrices * mlps + mixed * self.experts)

    @property
    def head_weights(self) -> int:
        """Number of weights in the output head, which multiplies only sampled rows."""
        return self.vocab_size * self.hidden_size

    @property
    def weight_bytes(self) -> float:
        """Bytes of all weights; a head that is not tied has an embedding table beside it."""
        tables = 1 if self.tied_head else 2
        return (self.layer_weights * self.weight_bits + tables * self.head_weights * self.head_bits) / 8

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bits // 8

    def divides(self, devices: int) -> bool:
        """Whether its heads can be divided over so many devices; heads of keys and values may be copied."""
        kv = self.kv_heads % devices == 0 or devices % self.kv_heads == 0
        return self.heads % devices == 0 and kv


def with_kv(model: ModelSpec, kv_format: str) -> ModelSpec:
    """The model with its keys and values in one of `KV_FORMATS`."""
    return replace(model, kv_bits=8) if kv_format == "fp8" else model


def load_hardware(name: str) -> Hardware:
    """Read a device by path or name. Raises SpecError."""
    return _load(name, "hardware", Hardware)


def load_model(name: str) -> ModelSpec:
    """Read a model by path or name. Raises SpecError."""
    return _load(name, "models", ModelSpec)


def load_costs(path: Path) -> Costs:
    """Read constants that `headrace loadtest calibrate` wrote. Raises SpecError."""
    return _build(Costs, _read(path), str(path))


def write_costs(costs: Costs, path: Path, comment: str) -> None:
    """Write constants for `load_costs`, with `comment` above them."""
    lines = [f"# {line}" for line in comment.splitlines()]
    lines += [f"{each.name}: {getattr(costs, each.name):.6g}" for each in fields(Costs)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _load(name: str, folder: str, kind: type[_T]) -> _T:
    path = Path(name)
    if not path.exists() and len(path.parts) == 1:
        path = CONFIGS / folder / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(each.stem for each in path.parent.glob("*.yaml")))
            raise SpecError(f"no file {name}, and configs/presets/{folder} has only {known}")
    return _build(kind, _read(path), str(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"{path}: a mapping is expected")
    return content


def _build(kind: type[_T], content: Mapping[str, Any], where: str) -> _T:
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(str(key) for key in set(content) - set(known)):
        raise SpecError(f"{where}: unknown key {unknown[0]}; known are {', '.join(known)}")
    missing = [name for name, each in known.items() if name not in content and each.default is MISSING]
    if missing:
        raise SpecError(f"{where}: {missing[0]} is missing")
    built = kind(**{name: _value(known[name].type, value, f"{where}: {name}") for name, value in content.items()})
    for name in () if kind is Costs else known.keys() - _MAY_BE_ZERO:
        value = getattr(built, name)
        for each in value.values() if isinstance(value, dict) else [value]:
            if isinstance(each, float) and (each == 0 or (name == "memory_share" and each > 1)):
                raise SpecError(
                    f"{where}: {name}: {'a share of at most 1' if each else 'more than 0'} is expected, not {each:g}"
                )
    return built


def _value(kind: Any, value: Any, where: str) -> Any:
    if kind is Costs:
        if not isinstance(value, dict):
            raise SpecError(f"{where}: a mapping is expected, not {value!r}")
        return _build(Costs, value, where)
    if get_origin(kind) is dict:
        if not isinstance(value, dict) or not value:
            raise SpecError(f"{where}: a mapping of numbers is expected, not {value!r}")
        return {str(key): _value(get_args(kind)[1], each, f"{where}.{key}") for key, each in value.items()}
    if kind in (str, bool):
        if not isinstance(value, kind):
            raise SpecError(f"{where}: {kind.__name__} is expected, not {value!r}")
        return value
    return _number(kind, value, where)


def _number(kind: Any, value: Any, where: str) -> float | int:
    """A number that is not negative. YAML reads `3e9` as text, so text that spells a number is accepted."""
    try:
        number = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise SpecError(f"{where}: a number of at least 0 is expected, not {value!r}")
    if kind is int:
        if number != int(number) or number == 0:
            raise SpecError(f"{where}: a whole number of at least 1 is expected, not {value!r}")
        return int(number)
    return number
