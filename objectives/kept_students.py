"""Students that were trained up to a rung and went no further, kept so that a later trial can train them on.

What is kept saves time and changes no result: without it a student is trained again from its start, to the same bits.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save

from compress.bounded import BoundedFolder, name_of
from compress.contents import contents
from compress.inputs import count, outputs, take
from compress.shared import Shared
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
        shared: where nodes share them.
    """

    def __init__(self, cache: Path, max_bytes: int, shared: Shared | None = None) -> None:
        self._files, self._shared = BoundedFolder(cache / "students" / "kept", max_bytes, spare=False), shared

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
        blob = save(state, metadata={KEY: _seal(key, state)})
        self._files.put(key, blob)
        if self._shared is not None:
            self._shared.put(_name(key), blob)

    def restore(self, start: str, steps: Sequence[int], student: Student, generator: torch.Generator) -> bool | None:
        """Bring a student from its start to where it was kept.

        Returns:
            `taken`, as it was put; None where none is kept or the file is damaged, and nothing was changed.
        """
        key = _key(start, steps)
        state = self._state(key)
        if state is None:
            return None
        drawn, taken = state.pop(GENERATOR), state.pop(TAKEN)
        student.restore(state)
        generator.set_state(drawn)
        self._files.use(key)
        return bool(taken)

    def _state(self, key: str) -> dict[str, torch.Tensor] | None:
        """What was put under a key here, else on another node; None where it is missing or damaged."""
        try:
            state = _read(key, self._files.path(key).read_bytes())
        except OSError:
            state = None
        if state is not None or self._shared is None:
            return state

        def fetched(blob: bytes) -> dict[str, torch.Tensor] | None:
            found = _read(key, blob)
            if found is not None:
                self._files.put(key, blob)
            return found

        return self._shared.get(_name(key), fetched)


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


def _name(key: str) -> str:
    return f"students/kept/{name_of(key)}"


def _read(key: str, blob: bytes) -> dict[str, torch.Tensor] | None:
    """The state that a file holds; None where it is damaged or another one's."""
    try:
        metadata, state = contents(blob)
        return state if metadata.get(KEY) == _seal(key, state) else None
    except (SafetensorError, ValueError, KeyError):
        return None


def _seal(key: str, state: Mapping[str, torch.Tensor]) -> str:
    """Whose state it is, and what it holds."""
    return f"{key} {sha256_of(state)}"
