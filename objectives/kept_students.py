"""Students that were trained up to a rung and went no further, kept so that a later trial can train them on.

What is kept saves time and changes no result: without it a student is trained again from its start, to the same bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from compress.bounded import BoundedFolder
from compress.inputs import count, outputs, take
from compress.training.lesson import Lesson
from compress.training.student import Student
from objectives.evaluation import Evaluation
from objectives.workload import LoadedWorkload, sha256_of
from spaces.policy import Distillation

CODE_VERSION = 1  # of everything that shapes a student in training: raise it when a result changes
KEY = "slimfront.student"
GENERATOR, TAKEN = "generator", "taken"


class KeptStudents:
    """Students below a bound in bytes; those that were used longest ago go first.

    Args:
        cache: the study's cache folder.
        max_bytes: bound on them together; 0 keeps none.
    """

    def __init__(self, cache: Path, max_bytes: int) -> None:
        self._files = BoundedFolder(cache / "students" / "kept", max_bytes, spare=False)

    def put(
        self, start: str, steps: Sequence[int], student: Student, generator: torch.Generator, *, taken: bool
    ) -> None:
        """Keep a student as it is after a rung.

        Args:
            start: from where it was trained (see `start_of`).
            steps: at which its rungs ended, the last of them now.
            student: it.
            generator: which the next rung draws from.
            taken: whether the candidate's model is this student, and not the one without training.
        """
        key = _key(start, steps)
        state = {**student.state(), GENERATOR: generator.get_state(), TAKEN: torch.tensor(taken)}
        self._files.put(key, save(state, metadata={KEY: _seal(key, state)}))

    def restore(self, start: str, steps: Sequence[int], student: Student, generator: torch.Generator) -> bool | None:
        """Bring a student from its start to where it was kept.

        Returns:
            `taken`, as it was put; None where none is kept or the file is damaged, and nothing was changed.
        """
        key = _key(start, steps)
        try:
            with safe_open(self._files.path(key), framework="pt") as file:
                seal = (file.metadata() or {}).get(KEY)
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no mapping
        except (OSError, SafetensorError):
            return None
        if seal != _seal(key, state):
            return None
        drawn, taken = state.pop(GENERATOR), state.pop(TAKEN)
        student.restore(state)
        generator.set_state(drawn)
        self._files.use(key)
        return bool(taken)


def start_of(
    loaded: LoadedWorkload, evaluation: Evaluation, lesson: Lesson, settings: Distillation, seed: int, student: Student
) -> str:
    """What a student begins with and learns, in 64 hexadecimal digits; before any training.

    Args:
        loaded: the workload.
        evaluation: settings of the study.
        lesson: what it learns.
        settings: how it learns.
        seed: of its training.
        student: it.
    """
    index = torch.arange(min(evaluation.chunk, count(lesson.inputs)))
    taught = lesson.teacher.at(index)
    begun = outputs(student.model, take(lesson.inputs, index), evaluation.chunk, evaluation.device)
    loss = lesson.loss(taught, index, settings)  # of the first samples, which tells one loss function from another
    about = [
        CODE_VERSION,
        loaded.data_sha256,
        settings.model_dump(mode="json"),
        seed,
        evaluation.chunk,
        evaluation.threads,
        evaluation.device,
        torch.__version__,
        lesson.kind,
        repr(loss.detach().double().item()),
        sha256_of({"student": begun, "teacher": taught}),
        sha256_of(student.state()),
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _key(start: str, steps: Sequence[int]) -> str:
    return hashlib.sha256(f"{start} {list(steps)}".encode()).hexdigest()


def _seal(key: str, state: Mapping[str, torch.Tensor]) -> str:
    """Whose state it is, and what it holds."""
    return f"{key} {sha256_of(state)}"
