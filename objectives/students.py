"""Smaller models that a workload offers: each learns from the trained model once, before it is compressed.

As in Hinton et al. 2015 (arXiv:1503.02531). Its weights are kept in the cache folder: all workers have those of the
first one that trained it.
"""

import contextlib
import copy
import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn

from compress.coding import CodedWeight, Kind
from compress.contents import contents
from compress.files import write_file, write_once
from compress.inputs import count, outputs, take
from compress.shared import Shared
from compress.sites import find_sites
from compress.training.lesson import Lesson
from compress.training.student import Student
from objectives.evaluation import Evaluation, seed_of
from objectives.workload import LoadedWorkload, sha256_of
from spaces.policy import Distillation

CODE_VERSION = 1  # of everything that shapes a trained student: raise it when a result changes
KEY = "slimfront.student"
TEMPERATURE, ALPHA = 4.0, 0.9  # of this training; those of a policy are for what is learned after compression


def trained_student(
    loaded: LoadedWorkload, evaluation: Evaluation, lesson: Lesson, name: str, shared: Shared | None = None
) -> nn.Module:
    """A student that has learned, in evaluation mode on the CPU; as it came where nothing is distilled.

    Raises:
        CandidateError: it does not learn: the loss became infinite or not a number.
    """
    given = loaded.students[name]
    settings = evaluation.distillation
    if settings is None or settings.student_steps == 0:
        return given
    plain = {"masks": "static", "grids": "fixed", "penalty": None, "features": 0.0}  # it may have other blocks
    settings = settings.model_copy(update={"temperature": TEMPERATURE, "alpha": ALPHA, **plain})
    model = copy.deepcopy(given)
    path = _path(loaded, evaluation, settings, lesson, name)
    known = _read(path)
    if known is None and shared is not None:
        known = _fetched(path, shared)
    if known is not None:
        model.load_state_dict(known, strict=True)
        return model.eval()
    model = _train(model.to(evaluation.device), lesson, settings, seed_of(evaluation.seed, f"student {name}"))
    state = {key: tensor.detach().clone().contiguous() for key, tensor in model.state_dict().items()}  # none is shared
    model.load_state_dict(_kept(path, state, shared), strict=True)
    return model.eval()


def _kept(path: Path, state: dict[str, torch.Tensor], shared: Shared | None) -> dict[str, torch.Tensor]:
    """The state that all workers take: the one that another has kept meanwhile, else this one."""
    blob = save(state, metadata={KEY: _seal(path, state)})
    if shared is not None:
        shared.put(_name(path), blob, wait=True)
        taken = _fetched(path, shared)
        if taken is not None:
            return taken
    return _written(path, blob) or state


def _fetched(path: Path, shared: Shared) -> dict[str, torch.Tensor] | None:
    """The state that nodes share, which is then kept here, too."""
    found = shared.get(_name(path), lambda blob: None if (state := _state(path, blob)) is None else (state, blob))
    if found is None:
        return None
    state, blob = found
    return _written(path, blob) or state


def _written(path: Path, blob: bytes) -> dict[str, torch.Tensor] | None:
    """The state that is kept here after one was put where there was none; None where nothing can be kept."""
    with contextlib.suppress(OSError):
        write_once(path, blob)
        if (found := _read(path)) is not None:
            return found
        write_file(path, blob)  # what was there is damaged
    return _read(path)


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """The state that is kept there; None where there is none, or it is damaged or another one's."""
    try:
        return _state(path, path.read_bytes())
    except OSError:
        return None


def _state(path: Path, blob: bytes) -> dict[str, torch.Tensor] | None:
    """The state that a file holds; None where it is damaged or another one's."""
    try:
        metadata, state = contents(blob)
        return state if metadata.get(KEY) == _seal(path, state) else None
    except (SafetensorError, ValueError, KeyError):
        return None


def _name(path: Path) -> str:
    return f"students/{path.name}"


def _seal(path: Path, state: dict[str, torch.Tensor]) -> str:
    """Whose state it is, and what it holds."""
    return f"{path.stem} {sha256_of(state)}"


def _train(model: nn.Module, lesson: Lesson, settings: Distillation, seed: int) -> nn.Module:
    sites = find_sites(model)
    weights = dict(model.named_parameters(remove_duplicate=False))
    originals = {site.name: weights[site.parameter].detach().clone() for site in sites}
    kept = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in originals.items()}
    coded = {site.name: CodedWeight(Kind.FLOAT32, site.rows(originals[site.name].float()).cpu(), 32) for site in sites}
    student = Student(model, sites, originals, kept, coded, settings)
    student.train(lesson, settings.student_steps, torch.Generator().manual_seed(seed))
    student.finish()
    return student.model.cpu()


def _path(loaded: LoadedWorkload, evaluation: Evaluation, settings: Distillation, lesson: Lesson, name: str) -> Path:
    about = [
        CODE_VERSION,
        loaded.model_sha256,
        loaded.data_sha256,
        name,
        settings.model_dump(mode="json"),
        evaluation.seed,
        evaluation.chunk,
        evaluation.threads,
        evaluation.device,
        torch.__version__,
        *_learned(loaded.students[name], lesson, settings, evaluation.chunk),
    ]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    return evaluation.cache / "students" / f"{key}.safetensors"


def _learned(given: nn.Module, lesson: Lesson, settings: Distillation, chunk: int) -> tuple[str, str, str]:
    """What code makes of the first samples: both models' outputs, and the loss of the teacher's."""
    index = torch.arange(min(chunk, count(lesson.inputs)))
    begun = outputs(given, take(lesson.inputs, index), chunk)
    taught = lesson.teacher.at(index)
    loss = lesson.loss(taught, index, settings)
    return lesson.kind, sha256_of({"student": begun, "teacher": taught}), repr(loss.detach().double().item())
