"""The choices of one site, as axes."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from spaces.axes import Axis, Grid, Options
from spaces.policy import (
    Activations,
    Choice,
    Codebook,
    Criterion,
    Float16,
    Float32,
    NoPruning,
    Prune,
    Rounding,
    ScalePer,
    SemiStructured,
    Threshold,
    Uniform,
    Unstructured,
)

CODED = ("uniform", "codebook")  # kinds of weights that have a bit width
_PRUNE: TypeAdapter[Prune] = TypeAdapter(Prune)
_ACTIVATIONS: TypeAdapter[Activations | None] = TypeAdapter(Activations | None)


@dataclass(frozen=True)
class Style:
    """What is the same in all choices of a site: how weights are ranked, scaled and rounded."""

    criterion: Criterion = "magnitude"
    scale_per: ScalePer = "channel"
    group_size: int | None = None
    symmetric: bool = True
    rounding: Rounding = "nearest"
    fisher: bool = False


@dataclass(frozen=True)
class SiteSpace:
    """Every kind of weights (x every bit width where it has one) x every pruning x every kind of activations.

    Attributes:
        ratios: of unstructured pruning; 0 is none.
        patterns: other prunings, such as 2:4.
        activations: how the site's input is quantized; None is not at all.
    """

    name: str
    kinds: tuple[str, ...]
    ratios: tuple[float, ...]
    bits: tuple[int, ...]
    patterns: tuple[SemiStructured | Threshold, ...] = ()
    activations: tuple[Activations | None, ...] = (None,)
    style: Style = Style()

    def prune(self, ratio: float) -> Prune:
        """Unstructured pruning at a ratio."""
        return Unstructured(ratio=ratio, criterion=self.style.criterion) if ratio > 0 else NoPruning()

    def prunings(self) -> tuple[Prune, ...]:
        """All prunings, in a fixed order."""
        return (*(self.prune(ratio) for ratio in self.ratios), *self.patterns)

    def choice(self, kind: str, prune: Prune, bits: int | None, activations: Activations | None = None) -> Choice:
        """The choice with these settings; `bits` is looked at for kinds that have a bit width only."""
        if kind in CODED and bits is None:
            raise ValueError(f"site {self.name}: {kind} weights need bits")
        style = self.style
        match kind:
            case "uniform":
                weights: Any = Uniform(
                    bits=bits or 0,
                    scale_per=style.scale_per,
                    group_size=style.group_size,
                    symmetric=style.symmetric,
                    rounding=style.rounding,
                )
            case "codebook":
                compensated = style.rounding == "gptq"
                weights = Codebook(bits=bits or 0, fisher=style.fisher, rounding="gptq" if compensated else "nearest")
            case "float16":
                weights = Float16()
            case "float32":
                weights = Float32()
            case _:
                raise ValueError(f"site {self.name}: unknown kind of weights {kind!r}, known are {self.kinds}")
        return Choice(prune=prune, weights=weights, activations=activations)

    def choices(self) -> tuple[Choice, ...]:
        """All choices, in a fixed order."""
        return tuple(
            self.choice(kind, prune, bits, activations)
            for kind in self.kinds
            for prune in self.prunings()
            for bits in (self.bits if kind in CODED else (None,))
            for activations in self.activations
        )

    def axes(self, prefix: str = "") -> Iterator[Axis]:
        """The axes of this site; what has a single value is no axis."""
        name = prefix + self.name
        if len(self.kinds) > 1:
            yield Options(f"{name}/kind", self.kinds)
        if self.patterns:
            yield Options(f"{name}/prune", self._prune_names())
        if len(self.ratios) > 1:
            yield Grid(f"{name}/ratio", self.ratios)
        if any(kind in CODED for kind in self.kinds) and len(self.bits) > 1:
            yield Grid(f"{name}/bits", tuple(self.bits))
        if len(self.activations) > 1:
            yield Options(f"{name}/activations", tuple(map(_activation_name, self.activations)))

    def at(self, point: Mapping[str, Any], prefix: str = "") -> Choice:
        """The choice at a point of the axes."""
        name = prefix + self.name
        kind = point.get(f"{name}/kind", self.kinds[0])
        bits = point.get(f"{name}/bits", self.bits[0] if self.bits else None)
        ratio = point.get(f"{name}/ratio", self.ratios[0] if self.ratios else 0.0)
        label = point[f"{name}/prune"] if self.patterns else "unstructured"
        activation = point.get(f"{name}/activations")
        key = kind, bits, ratio, label, activation
        if (known := self._known.get(key)) is None:
            prune = self.prune(ratio)
            if label != "unstructured":
                prune = self.patterns[self._prune_names().index(label) - bool(self.ratios)]
            names = [_activation_name(one) for one in self.activations]
            activations = self.activations[0 if activation is None else names.index(activation)]
            known = self.choice(kind, prune, int(bits) if bits is not None else None, activations)
            self._known[key] = known
        return known

    @cached_property
    def _known(self) -> dict[tuple[Any, ...], Choice]:
        """Choices by where they lie on the axes, once they were looked at."""
        return {}

    def point(self, choice: Choice, prefix: str = "") -> dict[str, Any]:
        """The values of this site's axes that give a choice; what the choice leaves open is the first value.

        Raises:
            ValueError: it is not among the choices.
        """
        if choice not in self.choices():
            raise ValueError(f"site {self.name}: {choice!r} is not among its {len(self.choices())} choices")
        name = prefix + self.name
        weights, prune = choice.weights, choice.prune
        bits = weights.bits if isinstance(weights, Uniform | Codebook) else min(self.bits, default=None)
        unstructured = isinstance(prune, NoPruning | Unstructured)
        return {
            f"{name}/kind": weights.kind,
            f"{name}/prune": "unstructured" if unstructured else prune.label,
            f"{name}/ratio": choice.ratio if unstructured else min(self.ratios, default=0.0),
            f"{name}/bits": bits,
            f"{name}/activations": _activation_name(choice.activations),
        }

    def nearest(self, kind: str, ratio: float, bits: int) -> Choice:
        """The allowed choice closest to a wish (its own first kind where the wished one is not allowed)."""
        own = kind if kind in self.kinds else self.kinds[0]
        width = min(self.bits, key=lambda b: (abs(b - bits), b)) if self.bits else None
        prune = self.prune(min(self.ratios, key=lambda r: (abs(r - ratio), r))) if self.ratios else self.patterns[0]
        return self.choice(own, prune, width, self.activations[0])

    def wishes(self) -> Iterator[tuple[float, str, int]]:
        """What may be wished for at every site alike: ratio, kind, bits."""
        for kind in self.kinds:
            for ratio in self.ratios or (0.0,):
                for bits in self.bits if kind in CODED else (32 if kind == "float32" else 16,):
                    yield ratio, kind, bits

    def _prune_names(self) -> tuple[str, ...]:
        return (*(("unstructured",) if self.ratios else ()), *(one.label for one in self.patterns))

    def document(self) -> dict[str, Any]:
        """The choices as JSON-able values, for `SiteSpace.read`."""
        return {
            "name": self.name,
            "kinds": self.kinds,
            "ratios": self.ratios,
            "bits": self.bits,
            "patterns": [one.model_dump(mode="json") for one in self.patterns],
            "activations": [one.model_dump(mode="json") if one else None for one in self.activations],
            "style": asdict(self.style),
        }

    @staticmethod
    def read(document: Mapping[str, Any]) -> "SiteSpace":
        """The inverse of `document`.

        Raises:
            KeyError, TypeError, ValueError: it is not such a document.
        """
        patterns = [_PRUNE.validate_python(one) for one in document["patterns"]]
        return SiteSpace(
            document["name"],
            tuple(document["kinds"]),
            tuple(document["ratios"]),
            tuple(document["bits"]),
            tuple(one for one in patterns if isinstance(one, SemiStructured | Threshold)),
            tuple(_ACTIVATIONS.validate_python(one) for one in document["activations"]),
            Style(**document["style"]),
        )


def _activation_name(activations: Activations | None) -> str:
    return activations.label.removesuffix(" activations") if activations else "float"
