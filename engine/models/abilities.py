"""What a decoder computes of what a description can say; the rest is refused by name, never left out. No torch."""

from collections.abc import Iterator
from dataclasses import dataclass, fields

from configs.model.config import ModelConfig
from configs.model.scales import Scales
from configs.model.source import ModelError
from engine.models.family import ENDS, LAYER, PARTS, Part, TensorSpec
from engine.models.registry import family_of

_SCALES = tuple(field.name for field in fields(Scales))
VARIANTS = frozenset({*_SCALES, "rotary_dim", "window_rotation", "unrotated_layers"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Abilities:
    """What one decoder computes beside what all models have.

    Attributes:
        who: the decoder, in words.
        activations: of an MLP's gate.
        more: tensors of a layer that it computes where a family has them, beside those of `LAYER`.
        optional: roles of `LAYER` that a family may do without.
        variants: which of `VARIANTS` it reads.
        instead: what to do about a model that it does not compute.
    """

    who: str
    activations: tuple[str, ...]
    more: tuple[TensorSpec, ...] = ()
    optional: tuple[str, ...] = ()
    variants: frozenset[str] = frozenset()
    instead: str

    def check(self, config: ModelConfig) -> None:
        """Refuse a model that needs more than this.

        Raises:
            ModelError: names what it needs, and who lacks it.
        """
        if lacking := self.lack(config):
            raise ModelError(f"{lacking}; {self.instead}.")

    def lack(self, config: ModelConfig) -> str | None:
        """The first thing that a model needs and this decoder does not compute, in words; None: there is none."""
        return next(self._lacking(config), None)

    def _lacking(self, config: ModelConfig) -> Iterator[str]:
        if config.implementation == "transformers":
            yield f"{self.who} compute no {config.architecture} models, which here only transformers' classes do"
            return
        family = family_of(config)
        which = f"which {config.architecture} models have"
        if family.activation not in self.activations:
            known = ", ".join(self.activations)
            yield f"{self.who} know the activations {known}, not {family.activation}, {which}"
        needed = {name: getattr(config.scales, name) for name in _SCALES} | {"rotary_dim": config.rotary_dim}
        needed["window_rotation"] = config.window_rotation and config.window_rotation.theta
        needed["unrotated_layers"] = len(config.unrotated_layers) or None
        for name, value in needed.items():
            if value is not None and name not in self.variants:
                yield f"{self.who} compute no {name}, {which} ({value:g})"
        layer = (*LAYER, *self.more)
        for where, theirs, ours in (("", family.ends, ENDS), (" in each layer", family.layer, layer)):
            yield from self._tensors(config, where, {spec.role: spec for spec in theirs}, {s.role: s for s in ours})

    def _tensors(
        self, config: ModelConfig, where: str, theirs: dict[str, TensorSpec], ours: dict[str, TensorSpec]
    ) -> Iterator[str]:
        """Tensors that a family has beyond `ours`, lacks, or has in another form. The decoders read presence off the flags of
        the description, as `ours` have them."""
        may_lack = {*self.optional, *(spec.role for spec in self.more)}
        for role, part in ((role, part) for role in theirs | ours for part in PARTS):
            there, read = _present(theirs, role, config, part), _present(ours, role, config, part)
            if there and not read:
                yield f"{self.who} compute no tensor {role}.{part}{where}, which {config.architecture} models have"
            elif read and not there and role not in may_lack:
                yield f"{self.who} need a tensor {role}.{part}{where}, which {config.architecture} models do not have"
            elif there and theirs[role].axes != ours[role].axes:
                found, wanted = ([axis.value for axis in spec.axes] for spec in (theirs[role], ours[role]))
                yield f"{self.who} compute a tensor {role} of {wanted}{where}, not of {found}, as {config.architecture} models have"


def _present(specs: dict[str, TensorSpec], role: str, config: ModelConfig, part: Part) -> bool:
    return role in specs and specs[role].present(config, part)
