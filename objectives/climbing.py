"""One candidate's student on its way up the rungs, and which of the candidate's models is the best so far."""

import copy

import torch

from compress.family import Variant
from compress.inputs import count, metered
from compress.training.student import Student
from objectives.evaluation import Evaluation
from objectives.kept_students import KeptStudents, start_of
from objectives.models import Models
from objectives.one_shot import OneShot, Workshop
from objectives.seeds import seed_of
from objectives.workload import LoadedWorkload
from spaces.errors import CandidateError
from spaces.policy import Distillation, Policy


class Climb:
    """A candidate in training, from rung 0 on.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        models: of the workload.
        workshop: of the workload.
        policy: the candidate's.
        shot: the candidate without training.

    Attributes:
        best: the model with the least loss on calibration data: a student that unlearned is not taken.
        rung: up to which the student was trained.
    """

    def __init__(
        self,
        loaded: LoadedWorkload,
        evaluation: Evaluation,
        models: Models,
        workshop: Workshop,
        policy: Policy,
        shot: OneShot,
    ) -> None:
        self._loaded, self._evaluation, self._models, self._workshop = loaded, evaluation, models, workshop
        self._policy, self._shot = policy, shot
        self._seed = seed_of(evaluation.seed, policy.digest)
        self._generator = torch.Generator().manual_seed(self._seed)
        self._kept = KeptStudents(evaluation.cache, evaluation.max_bytes, models.shared)
        self._student: Student | None = None
        self._start: str | None = None  # the student's, where some are kept
        self._best_rung = 0
        self._forwards, self._backwards = shot.forwards, 0
        self.best, self.rung = shot, 0

    def spent(self) -> tuple[int, int]:
        """Samples put through models to correct and train them, and samples trained on, since this was asked last."""
        found = self._forwards, self._backwards
        self._forwards = self._backwards = 0
        return found

    def up(self) -> bool:
        """Train the student for the next rung.

        Returns:
            Whether it is the best now.

        Raises:
            CandidateError: the policy says nothing of training, or training fails.
        """
        lesson, student = self._models.lesson, self._begun()
        ends = (0, *self._evaluation.steps)
        steps = ends[self.rung + 1] - ends[self.rung]
        student.train(lesson, steps, self._generator)
        trained = steps * min(self._settings().batch_size, count(lesson.inputs))
        self.rung += 1
        self._forwards += trained
        self._backwards += trained
        now = self._finished(student)
        if now.calibration_loss >= self.best.calibration_loss:
            return False
        self.best, self._best_rung = now, self.rung
        return True

    def up_to(self, rung: int) -> None:
        """Go from rung 0 to the end of another one: with the student that was kept there, else by training again.

        What was kept and is lost is no cost: it would depend on the machine. What was not worth keeping is one.

        Raises:
            CandidateError: the policy says nothing of training, or training fails.
        """
        if rung:
            student = self._begun()
            steps = self._evaluation.steps[:rung]
            taken = self._kept.restore(self._start, steps, student, self._generator) if self._start else None
            if taken is not None:
                self.rung = rung
            if taken:
                self.best, self._best_rung = self._finished(student), rung
        while self.rung < rung:
            self.up()
        if self._worth_keeping:
            self._forwards, self._backwards = self._shot.forwards, 0

    def keep(self) -> None:
        """Keep the student for a trial that goes on from this rung, if there is a next one."""
        goes_on = self.rung < len(self._evaluation.steps)
        if goes_on and self._student is not None and self._start and self._worth_keeping:
            steps, taken = self._evaluation.steps[: self.rung], self._best_rung == self.rung
            self._kept.put(self._start, steps, self._student, self._generator, taken=taken)

    @property
    def _worth_keeping(self) -> bool:
        """Whether the best model is made of the student; that of a rung between would be missing."""
        return self._best_rung in (0, self.rung)

    def _settings(self) -> Distillation:
        settings = self._policy.distillation
        if settings is None:
            raise CandidateError("the policy has no settings of distillation")
        return settings

    def _begun(self) -> Student:
        """The student, made where there is none yet."""
        if self._student is None:
            settings, shot = self._settings(), self._shot
            parameters = dict(shot.variant.model.named_parameters(remove_duplicate=False))
            sites = shot.variant.sites
            originals = {site.name: parameters[site.parameter].detach() for site in sites}
            kept = {}
            for site in sites:
                mask = shot.applied.layers[site.name].kept
                kept[site.name] = torch.ones(site.shape, dtype=torch.bool) if mask is None else site.weight(mask)
            whole = self._policy.model is None  # smaller models have no early weights
            early = self._early(shot.variant) if settings.rewind and whole else None
            prune = {name: choice.prune for name, choice in self._policy.sites.items()}
            model = copy.deepcopy(shot.model)
            self._student = Student(model, sites, originals, kept, shot.coded, settings, prune, early)
            if len(self._evaluation.steps) > 1:  # whether it is kept or not, so that the same work is counted
                lesson = self._models.lesson
                with metered(model) as meter:
                    self._start = start_of(self._loaded, self._evaluation, lesson, settings, self._seed, self._student)
                self._forwards += meter.samples
        return self._student

    def _finished(self, student: Student) -> OneShot:
        """The student's model as it is stored, corrected on calibration data."""
        coded = student.finish()
        model = copy.deepcopy(student.model)
        now = self._workshop.corrected(self._shot.variant, self._shot.applied, model, coded)
        self._forwards += now.forwards
        return now

    def _early(self, variant: Variant) -> dict[str, torch.Tensor]:
        """Early weights of the brought model's sites, with its channels cut out."""
        given = self._loaded.workload.early
        if given is None:
            raise CandidateError(
                "distillation.rewind: the workload offers no early weights of its model: give Workload(early=...), or "
                "set distillation.rewind to false"
            )
        whole = {site.name: given[site.parameter].float() for site in variant.sites}
        cuts = variant.cuts
        return {
            site.name: whole[site.name].flatten()[cuts[site.name].index] if site.name in cuts else whole[site.name]
            for site in variant.sites
        }
