"""The models of a workload as they are compressed: trained students, smoothed weights, statistics, layer databases."""

from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import nn

from compress.database import LayerDatabase
from compress.family import Family, Member, Variant
from compress.inputs import outputs
from compress.pruning.channel_scores import kept_channels, scores
from compress.quantization.smooth import smooth
from compress.shared import Shared
from compress.shelf import Shelf
from compress.statistics import SiteStatistics, collect
from compress.structure import ChannelGroup, Structure
from compress.training.lesson import Lesson
from objectives.bases import Base, make_base
from objectives.evaluation import Evaluation, Teacher
from objectives.students import trained_student
from objectives.workload import LoadedWorkload, sha256_of
from spaces.errors import CandidateError
from spaces.policy import ChannelPruning, Policy

KEPT_BASES = 2


class Models:
    """All models of a workload, each made when it is first asked for.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        teacher: the float model's outputs.

    Attributes:
        lesson: what students learn.
        shared: where nodes share what takes time to make; None where they do not.
    """

    def __init__(self, loaded: LoadedWorkload, evaluation: Evaluation, teacher: Teacher) -> None:
        self._loaded, self._evaluation, self._teacher = loaded, evaluation, teacher
        self.shared = None if evaluation.shared is None else Shared(evaluation.shared)
        split = loaded.splits["train"]
        kind = loaded.workload.outputs
        self.lesson = Lesson(split.inputs, teacher.train, split.targets, loaded.hard_loss(), kind, loaded.model)
        self._members: dict[str | None, Member] = {}
        self._databases: dict[str | None, LayerDatabase] = {}
        self._statistics: dict[str | None, Mapping[str, SiteStatistics]] = {}
        self._scores: dict[tuple[str | None, str, str], torch.Tensor] = {}
        self._bases: OrderedDict[str, Base] = OrderedDict()

    @property
    def names(self) -> tuple[str | None, ...]:
        """The brought model and the students."""
        return (None, *self._loaded.students)

    def member(self, name: str | None) -> Member:
        """A model; None is the one that was brought.

        Raises:
            CandidateError: the workload offers no such model.
        """
        if name not in self._members:
            if name is not None and name not in self._loaded.students:
                offered = ", ".join(self._loaded.students) or "no students"
                raise CandidateError(f"the workload offers no model {name!r}; it offers {offered}")
            model = self._model(name)
            coding, example = self._evaluation.coding, self._loaded.workload.example_input
            self._members[name] = Member(name, model, example, self._loaded.entry, coding)
        return self._members[name]

    @cached_property
    def family(self) -> Family:
        """What packed files may hold: architectures, whatever their weights."""
        example, entry = self._loaded.workload.example_input, self._loaded.entry
        models = {name: self._loaded.students[name] if name else self._loaded.model for name in self.names}
        return Family({name: Member(name, model, example, entry) for name, model in models.items()})

    def database(self, name: str | None) -> LayerDatabase:
        """The layer database of a model."""
        if name not in self._databases:
            evaluation, member = self._evaluation, self.member(name)
            self._databases[name] = LayerDatabase(
                member.model,
                member.sites,
                lambda: self.statistics(name),
                self._identity(member),
                coding=evaluation.coding,
                shelf=Shelf(evaluation.cache / "layers", evaluation.max_bytes, self.shared)
                if evaluation.max_bytes or self.shared
                else None,
            )
        return self._databases[name]

    def statistics(self, name: str | None) -> Mapping[str, SiteStatistics]:
        """What calibration data say about a model's sites."""
        if name not in self._statistics:
            member, evaluation = self.member(name), self._evaluation
            inputs = self._loaded.splits["calibration"].inputs
            loss = self._loss if evaluation.gradients else None
            self._statistics[name] = collect(member.model, member.sites, inputs, evaluation.chunk, "cpu", loss)
        return self._statistics[name]

    def variant(self, policy: Policy) -> Variant:
        """The float model that a policy's choices are for, with its channels and blocks cut out.

        Raises:
            CandidateError: the policy names what the model does not have.
        """
        if policy.smoothing != self._evaluation.smoothing:
            raise CandidateError(
                f"the policy's smoothing is {policy.smoothing}, the models here have {self._evaluation.smoothing}"
            )
        member = self.member(policy.model)
        if not policy.channels and not policy.dropped:
            return member.whole
        kept, how = {}, policy.channel_pruning or ChannelPruning()
        for name, ratio in policy.channels.items():
            group = next((one for one in member.groups if one.name == name), None)
            if group is None:
                known = ", ".join(one.name for one in member.groups)
                raise CandidateError(f"the model has no group of channels {name!r}; it has {known or 'none'}")
            kept[name] = self._kept(policy.model, group, ratio, how)
        if odd := sorted(set(policy.dropped) - set(member.blocks)):
            raise CandidateError(f"the model has no residual blocks {odd}; it has {list(member.blocks)}")
        return member.variant(Structure(kept, policy.dropped), refit=bool(kept) and how.refit)

    def base(self, policy: Policy) -> Base:
        """The float model of a policy's setting as its candidates start from it; the choices do not matter.

        Raises:
            CandidateError: the policy names what the model does not have.
        """
        key = policy.model_copy(update={"sites": {}, "distillation": None}).digest
        if key not in self._bases:
            variant, database = self.variant(policy), self.database(policy.model)
            self._bases[key] = make_base(self._loaded, self._evaluation, self._teacher, variant, database)
        self._bases.move_to_end(key)
        while len(self._bases) > KEPT_BASES:
            self._bases.popitem(last=False)
        return self._bases[key]

    def _kept(self, model: str | None, group: ChannelGroup, ratio: float, how: ChannelPruning) -> tuple[int, ...]:
        key = (model, group.name, how.criterion)
        if key not in self._scores:
            needed = how.criterion in ("taylor", "apoz", "wanda", "hessian")
            statistics = self.statistics(model) if needed else {}
            self._scores[key] = scores(self.member(model).model, group, how.criterion, statistics)
        return kept_channels(self._scores[key], ratio, group.step(how.multiple))

    def _model(self, name: str | None) -> nn.Module:
        model = (
            self._loaded.model
            if name is None
            else trained_student(self._loaded, self._evaluation, self.lesson, name, self.shared)
        )
        if self._evaluation.smoothing is None:
            return model
        inputs = self._loaded.splits["calibration"].inputs
        return smooth(model, inputs, self._evaluation.smoothing, self._evaluation.chunk)[0]

    def _identity(self, member: Member) -> str:
        """What a member's layers are made from: its weights, what it computes, the loss if one counts, and the data."""
        evaluation, out = self._evaluation, self._outputs(member)
        parts = [sha256_of(member.model.state_dict()), sha256_of({"outputs": out}), self._loaded.data_sha256]
        if evaluation.gradients:
            parts.append(sha256_of(self._slopes(out)))
        return " ".join(map(str, (*parts, evaluation.chunk, evaluation.threads)))

    def _outputs(self, member: Member) -> torch.Tensor:
        """Of a member on calibration data, float32 (samples, ...), computed on the CPU as its statistics are."""
        known = self._teacher.calibration
        if member.model is self._loaded.model and known.numel() and self._evaluation.device == "cpu":
            return known
        return outputs(member.model, self._loaded.splits["calibration"].inputs, self._evaluation.chunk)

    def _slopes(self, out: torch.Tensor) -> dict[str, torch.Tensor]:
        """By chunk, the gradient of the loss with respect to outputs (samples, ...): all that others learn of it."""
        slopes = {}
        for start in range(0, out.shape[0], self._evaluation.chunk):
            samples = slice(start, start + self._evaluation.chunk)
            part = out[samples].detach().clone().requires_grad_()
            (slopes[str(start)],) = torch.autograd.grad(self._loss(part, samples), part)
        return slopes

    def _loss(self, out: torch.Tensor, samples: slice) -> torch.Tensor:
        """The loss whose gradients rank weights, summed over samples."""
        split, hard = self._loaded.splits["calibration"], self._loaded.hard_loss()
        if hard is not None and split.targets is not None:
            return hard(out, split.targets[samples]) * out.shape[0]
        if self._loaded.workload.outputs == "logits":  # as sure of its own answer as it is
            return -out.log_softmax(dim=-1).amax(dim=-1).sum()
        return out.square().sum() / 2
