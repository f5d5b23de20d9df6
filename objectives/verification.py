"""A model file held against its policy: its bytes and hash, what was done to each site, and what it scores."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from compress.artifact import open_packed
from compress.inputs import outputs
from compress.onnx import run
from objectives.differences import choice_differences, structure_differences
from objectives.evaluation import no_teacher
from objectives.judging import JUDGED, judge
from objectives.replay import evaluation_of, own_threads, workload_of
from objectives.score import Scorer
from objectives.serving import unpack
from objectives.splits import SplitName
from objectives.workload import LoadedWorkload
from spaces.errors import ArtifactError, CandidateError, SlimfrontError
from spaces.policy import PolicyFile

TOLERANCE = 0.002  # of accuracy: what another machine's rounding may change
ROUNDED_TOLERANCE = 0.005  # of an ONNX file with rounded inputs: a last bit becomes a whole step; 0.0027 was seen
FileKind = Literal["packed", "onnx"]
Outputs = Callable[[SplitName], torch.Tensor]


@dataclass(frozen=True)
class Verification:
    """What a model file should be and is: bytes, hash, and accuracy on the same validation and test samples.

    Attributes:
        kind: whether it is the packed file, or an ONNX file, whose bytes and hash are in no policy.
        expected_bytes: None for an ONNX file.
        measured_accuracy: None where the file is no model of this workload; so is `measured_test_accuracy`.
        same_file: by its hash; None where the policy names none.
        reasons: what does not hold; empty if `ok`.
        notes: differences that are within the tolerance, and what could not be checked.
    """

    kind: FileKind
    expected_bytes: int | None
    measured_bytes: int
    expected_accuracy: float
    measured_accuracy: float | None
    expected_test_accuracy: float | None
    measured_test_accuracy: float | None
    same_file: bool | None
    same_model: bool
    same_data: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether everything holds."""
        return not self.reasons

    def document(self) -> dict[str, Any]:
        """The verification as JSON values."""
        return {"ok": self.ok, **asdict(self)}


def verify(
    model_path: Path,
    policy: PolicyFile,
    *,
    workload: str | None = None,
    tolerance: float | None = None,
    device: str | None = None,
) -> Verification:
    """Check that a model file is the one of a policy, and scores what the policy says, evaluated as in the search.

    An ONNX file (by its name's end) is run by ONNX Runtime on one CPU thread. Its scores are all that is compared: a
    policy knows neither its bytes nor its hash, and which codes are in it is not read back.

    Args:
        model_path: the packed file, or an ONNX file.
        policy: what it should be.
        workload: `module:function` or `file.py:function`; None is the policy's, if that ships with Slimfront.
        tolerance: accuracy by which the scores may differ; None is 0.002, or 0.005 for an ONNX file of a policy that
            quantizes activations. On the machine of the search those of a packed file do not differ at all.
        device: "cpu", "cuda" or "auto", for packed files; None is that of the search.

    Raises:
        ArtifactError: there is no such file.
        CandidateError: the model or the metric fails on it.
        ConfigError: it is an ONNX file, and the extra packages are not installed.
        WorkloadError: the workload is not known or cannot be loaded.
    """
    kind: FileKind = "onnx" if model_path.suffix == ".onnx" else "packed"
    rounded = kind == "onnx" and any(choice.activations for choice in policy.sites.values())
    within = tolerance if tolerance is not None else ROUNDED_TOLERANCE if rounded else TOLERANCE
    size, sha256 = _size_and_hash(model_path)
    reasons: list[str] = []
    notes = ["an ONNX file is judged by its scores alone: neither its bytes nor the codes in it are in the policy"]
    if kind == "packed":
        notes = _compare_file(policy, size, sha256, reasons)
    values: dict[SplitName, float] = {}
    with own_threads(policy.provenance.threads):
        loaded = workload_of(policy.workload.entry, workload, "the policy was found")
        same_model = loaded.model_sha256 == policy.workload.model_sha256
        same_data = loaded.data_sha256 == policy.workload.data_sha256
        for what, same in (("float model", same_model), ("data", same_data)):
            reasons += [] if same else [f"{loaded.entry}: its {what} changed since the policy was found"]
        try:
            if kind == "onnx":
                values = _scores(loaded, model_path, lambda name: _of_onnx(loaded, model_path, policy, name))
            else:
                values = _scores(loaded, model_path, _of_packed(loaded, model_path, policy, device, reasons))
        except ArtifactError as error:
            reasons.append(str(error))
    _compare_scores(values, policy, within, reasons, notes)
    expected = policy.artifact.sha256 if kind == "packed" else None
    return Verification(
        kind=kind,
        expected_bytes=policy.artifact.bytes if kind == "packed" else None,
        measured_bytes=size,
        expected_accuracy=policy.score.accuracy,
        measured_accuracy=values.get("validation"),
        expected_test_accuracy=policy.score.test_accuracy,
        measured_test_accuracy=values.get("test"),
        same_file=None if expected is None else sha256 == expected,
        same_model=same_model,
        same_data=same_data,
        reasons=tuple(reasons),
        notes=tuple(notes),
    )


def _size_and_hash(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            return file.tell(), sha256
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from error


def _compare_file(policy: PolicyFile, size: int, sha256: str, reasons: list[str]) -> list[str]:
    """Add what does not hold of a packed file's bytes and hash; the notes on it."""
    record = policy.artifact
    if size != record.bytes:
        reasons.append(f"the file has {size:,} bytes, the policy says {record.bytes:,}")
    if record.sha256 is None:
        return ["the policy names no hash, because the search did not keep its file"]
    if sha256 != record.sha256:
        reasons.append(f"the file's SHA-256 is {sha256[:12]}..., the policy says {record.sha256[:12]}...")
    return []


def _of_onnx(loaded: LoadedWorkload, path: Path, policy: PolicyFile, name: SplitName) -> torch.Tensor:
    return run(path, loaded.splits[name].inputs, policy.provenance.chunk)


def _of_packed(
    loaded: LoadedWorkload, path: Path, policy: PolicyFile, device: str | None, reasons: list[str]
) -> Outputs:
    """The outputs of a packed file, which is read and unpacked once; adds where it does not hold what was chosen."""
    evaluation = evaluation_of(policy, device, (), Path())
    opened = open_packed(path)
    family = Scorer(loaded, evaluation, no_teacher()).models.family
    content = unpack(family, opened)
    reasons += structure_differences(family, opened, policy) + choice_differences(content.coded, policy.sites)
    model = content.model.to(evaluation.device)
    return lambda name: outputs(model, loaded.splits[name].inputs, evaluation.chunk, evaluation.device)


def _scores(loaded: LoadedWorkload, path: Path, outputs_on: Outputs) -> dict[SplitName, float]:
    try:
        return {name: judge(loaded, outputs_on(name), name).value for name in JUDGED}
    except SlimfrontError:
        raise
    except Exception as error:
        raise CandidateError(f"{path}: cannot be scored: {type(error).__name__}: {error}") from error


def _compare_scores(
    values: dict[SplitName, float], policy: PolicyFile, tolerance: float, reasons: list[str], notes: list[str]
) -> None:
    expected = {"validation": policy.score.accuracy, "test": policy.score.test_accuracy}
    for split, measured in values.items():
        wanted = expected[split]
        if wanted is None or measured == wanted:
            continue
        text = f"accuracy on {split} is {measured:.6f}, the policy says {wanted:.6f}"
        if abs(measured - wanted) > tolerance:
            reasons.append(f"{text}: more than {tolerance:g} apart")
        else:
            notes.append(f"{text}: within {tolerance:g}, as another machine or version rounds")
