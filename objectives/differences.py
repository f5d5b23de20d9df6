"""Where a packed file does not hold what a policy chose: the model, its channels and blocks, and each site's choice."""

from collections.abc import Iterator, Mapping
from typing import assert_never

from compress.artifact import Opened
from compress.coding import CodedWeight, Kind
from compress.family import Family
from spaces.build import kept_count
from spaces.policy import (
    ChannelPruning,
    Choice,
    Codebook,
    NoPruning,
    PolicyFile,
    Prune,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
)

_KINDS = {"float32": Kind.FLOAT32, "float16": Kind.FLOAT16, "uniform": Kind.UNIFORM, "codebook": Kind.CODEBOOK}


def structure_differences(family: Family, opened: Opened, policy: PolicyFile) -> list[str]:
    """Where a file holds another model than the policy's, or one with other numbers of channels or other blocks.

    Which channels are left is not compared, only how many: that they are those of the search is what the hash says.

    Args:
        family: what the workload offers; the file is of one of its models.
        opened: the file.
        policy: what it should be.

    Raises:
        ArtifactError: the file's bits do not fit its model.
    """
    if policy.model not in family.members:
        return [f"the policy is of {_named(policy.model)}, which the workload does not offer"]
    member = family[policy.model]
    if member.fingerprint != opened.fingerprint:
        held = family.of_file(opened).member
        return [f"the file holds {_named(held.name)}, the policy is of {_named(policy.model)}"]
    if not (opened.structure or policy.channels or policy.dropped):
        return []
    structure, how = member.structure_of(opened), policy.channel_pruning or ChannelPruning()
    names = [group.name for group in member.groups]
    reasons = [f"the model has no channels {name}" for name in sorted(policy.channels.keys() - set(names))]
    for group in member.groups:
        left = len(structure.kept.get(group.name, range(group.channels)))
        wished = kept_count(group.channels, policy.channels.get(group.name, 0.0), group.step(how.multiple))
        if left != wished:
            reasons.append(f"{group.name}: {left} of {group.channels} channels are left, the policy says {wished}")
    if set(structure.dropped) != set(policy.dropped):
        lists = (", ".join(sorted(names)) or "no block" for names in (structure.dropped, policy.dropped))
        reasons.append("the file leaves out {}, the policy says {}".format(*lists))
    return reasons


def _named(model: str | None) -> str:
    return "the model that was brought" if model is None else f"the student {model!r}"


def choice_differences(coded: Mapping[str, CodedWeight], sites: Mapping[str, Choice]) -> list[str]:
    """Where a file's coded weights are not what was chosen.

    Args:
        coded: what the file holds, by site.
        sites: what was chosen, by site.
    """
    if odd := sorted(coded.keys() ^ sites.keys()):
        return [f"the file's sites are not those of the policy: {', '.join(odd)}"]
    return [
        f"site {name}: the file holds {', '.join(_held(one))}; the policy says {sites[name].label}"
        for name, one in coded.items()
        if not _is(one, sites[name])
    ]


def _is(one: CodedWeight, choice: Choice) -> bool:
    bits = choice.weights.bits if isinstance(choice.weights, Uniform | Codebook) else one.bits
    kind = (_KINDS[choice.weights.kind], bits) == (one.kind, one.bits)
    few = one.nonzero <= kept_at_most(choice.prune, one.values.numel())
    wished, inputs = choice.activations, one.inputs
    if wished is None or inputs is None:
        return kind and few and wished is None and inputs is None
    static = isinstance(wished, StaticActivations)
    return kind and few and (wished.bits, static) == (inputs.bits, inputs.low is not None)


def _held(one: CodedWeight) -> Iterator[str]:
    yield f"{one.kind.name.lower()} weights of {one.bits} bits"
    yield f"{one.nonzero:,} of {one.values.numel():,} not zero"
    if one.inputs is not None:
        yield f"{one.inputs.bits}-bit {'dynamic' if one.inputs.low is None else 'static'} activations"


def kept_at_most(prune: Prune, size: int) -> int:
    """How many of `size` weights a pruning leaves at most."""
    match prune:
        case Unstructured(ratio=ratio):
            return size - round(ratio * size)
        case SemiStructured(n=n, m=m):
            return size * n // m
        case NoPruning() | Threshold():
            return size
        case _:
            assert_never(prune)
