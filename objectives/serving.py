"""Packed files in use: loaded as a ready model, verified against their policy, made again by training."""

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.artifact import Layout, layout_of, read_entry
from compress.coding import Kind
from compress.files import artifact_path, write_file
from objectives.score import JUDGED, Evaluation, Scorer, Teacher, resolve_device, teach
from objectives.workload import LoadedWorkload, load_workload
from spaces.errors import ArtifactError, ConfigError, WorkloadError
from spaces.policy import PolicyFile, Provenance, Uniform

SHIPPED = ("objectives.workloads.digits:workload", "objectives.workloads.animals:workload")
TOLERANCE = 0.002  # of accuracy: what another machine's rounding may change


def load(path: Path | str, *, workload: str | None = None, model: nn.Module | None = None) -> nn.Module:
    """A ready model, in evaluation mode on the CPU, with the weights of a packed file.

    Args:
        path: the packed file.
        workload: `module:function` or `file.py:function` of the workload it was packed from; None is the one that the
            file names, if that ships with Slimfront. What a file names is never imported otherwise.
        model: a model of the same architecture, instead of a workload's; it is not changed.

    Raises:
        ArtifactError: the file is missing, damaged, or packed from another architecture.
        WorkloadError: the workload is not known or cannot be loaded.

    Example:
        >>> model = load("model.safetensors")  # doctest: +SKIP
        >>> model(images).argmax(dim=1)  # doctest: +SKIP
    """
    path = Path(path)
    entry = read_entry(path)
    if model is None:
        model = _load_workload(entry, workload, f"{path} was packed").model
    return layout_of(model, entry).unpack(path)


@dataclass(frozen=True)
class Verification:
    """What a packed file should be and is: bytes, hash, and accuracy on the same validation and test samples.

    Attributes:
        measured_accuracy: None where the file is no model of this workload; so is `measured_test_accuracy`.
        same_file: by its hash; None where the policy names none.
        reasons: what does not hold; empty if `ok`.
        notes: differences that are within the tolerance.
    """

    expected_bytes: int
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
    tolerance: float = TOLERANCE,
    device: str | None = None,
) -> Verification:
    """Check that a packed file is the one of a policy, and scores what the policy says, evaluated as in the search.

    Args:
        model_path: the packed file.
        policy: what it should be.
        workload: `module:function` or `file.py:function`; None is the policy's, if that ships with Slimfront.
        tolerance: accuracy by which the scores may differ; on the machine of the search they do not differ at all.
        device: "cpu", "cuda" or "auto"; None is that of the search.

    Raises:
        ArtifactError: there is no such file.
        WorkloadError: the workload is not known or cannot be loaded.
    """
    try:
        blob = model_path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{model_path}: cannot be read: {error.strerror}") from error
    with _own_threads(policy.provenance.threads):
        loaded = _load_workload(policy.workload.entry, workload, "the policy was found")
    reasons, notes = _file_differences(blob, policy)
    same_model = loaded.model_sha256 == policy.workload.model_sha256
    same_data = loaded.data_sha256 == policy.workload.data_sha256
    for what, same in (("float model", same_model), ("data", same_data)):
        reasons += [] if same else [f"{loaded.entry}: its {what} changed since the policy was found"]
    values: dict[str, float | None] = {"validation": None, "test": None}
    try:
        reasons += _other_choices(loaded, model_path, policy)
        values = _score(loaded, model_path, policy.provenance, device)
    except ArtifactError as error:
        reasons.append(str(error))
    expected = {"validation": policy.score.accuracy, "test": policy.score.test_accuracy}
    for split, measured in values.items():
        wanted = expected[split]
        if measured is None or wanted is None or measured == wanted:
            continue
        text = f"accuracy on {split} is {measured:.6f}, the policy says {wanted:.6f}"
        if abs(measured - wanted) > tolerance:
            reasons.append(f"{text}: more than {tolerance:g} apart")
        else:
            notes.append(f"{text}: within {tolerance:g}, as another machine or version rounds")
    sha256 = policy.artifact.sha256
    return Verification(
        expected_bytes=policy.artifact.bytes,
        measured_bytes=len(blob),
        expected_accuracy=policy.score.accuracy,
        measured_accuracy=values["validation"],
        expected_test_accuracy=policy.score.test_accuracy,
        measured_test_accuracy=values["test"],
        same_file=None if sha256 is None else hashlib.sha256(blob).hexdigest() == sha256,
        same_model=same_model,
        same_data=same_data,
        reasons=tuple(reasons),
        notes=tuple(notes),
    )


def _other_choices(loaded: LoadedWorkload, path: Path, policy: PolicyFile) -> list[str]:
    """Where the file does not hold what the policy chose."""
    _, coded = Layout(loaded.model, loaded.sites, loaded.entry).read(path)
    if odd := sorted(coded.keys() ^ policy.sites.keys()):
        return [f"the file's sites are not those of the policy: {', '.join(odd)}"]
    kinds = {"float32": Kind.FLOAT32, "float16": Kind.FLOAT16, "uniform": Kind.UNIFORM}
    reasons = []
    for name, one in coded.items():
        choice, size = policy.sites[name], one.values.numel()
        bits = choice.weights.bits if isinstance(choice.weights, Uniform) else one.bits
        kept = size - round(choice.ratio * size)
        if (one.kind, one.bits) != (kinds[choice.weights.kind], bits) or one.nonzero > kept:
            held = f"{one.kind.name.lower()} weights of {one.bits} bits, {one.nonzero:,} of {size:,} not zero"
            reasons.append(f"site {name}: the file holds {held}; the policy says {choice.label}")
    return reasons


def _file_differences(blob: bytes, policy: PolicyFile) -> tuple[list[str], list[str]]:
    """What does not hold of a file's bytes and hash, and what is only to be noted."""
    record, reasons, notes = policy.artifact, [], []
    sha256 = hashlib.sha256(blob).hexdigest()
    if len(blob) != record.bytes:
        reasons.append(f"the file has {len(blob):,} bytes, the policy says {record.bytes:,}")
    if record.sha256 is None:
        notes.append("the policy names no hash, because the search did not keep its file")
    elif sha256 != record.sha256:
        reasons.append(f"the file's SHA-256 is {sha256[:12]}..., the policy says {record.sha256[:12]}...")
    return reasons, notes


@dataclass(frozen=True)
class Retrained:
    """A packed file that was made again, and how it differs from the one that was scored.

    Attributes:
        same_file: whether it is that file, byte by byte; None where the policy names no hash.
    """

    path: str
    bytes: int
    sha256: str
    accuracy: float
    expected_accuracy: float
    same_file: bool | None

    def document(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def retrain(
    policy: PolicyFile,
    output: Path,
    *,
    workload: str | None = None,
    device: str | None = None,
) -> Retrained:
    """Carry a policy out again, up to the rung it reached, and write the packed file.

    With the machine, versions and device of the search it is the same file; elsewhere training is not equal
    bit by bit, and what comes out is reported.

    Args:
        policy: what to carry out.
        output: where the file goes.
        workload: `module:function` or `file.py:function`; None is the policy's, if that ships with Slimfront.
        device: "cpu", "cuda" or "auto"; None is that of the search.

    Raises:
        WorkloadError: the workload is not known, cannot be loaded, or its model or data have changed.
        CandidateError, RetryableError: the policy cannot be carried out.
        ConfigError: `output` cannot be written.
    """
    with _own_threads(policy.provenance.threads):
        loaded = _load_workload(policy.workload.entry, workload, "the policy was found")
    for what, now, then in (
        ("float model", loaded.model_sha256, policy.workload.model_sha256),
        ("data", loaded.data_sha256, policy.workload.data_sha256),
    ):
        if now != then:
            raise WorkloadError(
                f"{loaded.entry}: its {what} changed since the policy was found (SHA-256 {now[:12]}..., then "
                f"{then[:12]}...): training would give something else; restore it, or search again"
            )
    steps = policy.distillation.ladder if policy.distillation else ()
    with tempfile.TemporaryDirectory() as folder, _own_threads(policy.provenance.threads):
        evaluation = _evaluation(policy.provenance, device, steps, Path(folder))
        scorer = Scorer(loaded, evaluation, teach(loaded, evaluation))
        score = scorer.score(policy.policy, lambda rung, accuracy, size: True, lambda accuracy, size: True)
        sha256 = str(score.artifact)  # it was kept, as asked for
        blob = artifact_path(evaluation.cache, sha256).read_bytes()
    try:
        write_file(output, blob)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    expected = policy.artifact.sha256
    return Retrained(
        path=str(output),
        bytes=len(blob),
        sha256=sha256,
        accuracy=score.accuracy,
        expected_accuracy=policy.score.accuracy,
        same_file=None if expected is None else expected == sha256,
    )


def _load_workload(entry: str, given: str | None, what: str) -> LoadedWorkload:
    """The given workload, under the name `entry`; without one, the workload of that name if it ships."""
    if given is not None:
        return load_workload(given, entry)
    for shipped in SHIPPED:
        if entry == shipped:
            return load_workload(shipped)
    raise WorkloadError(
        f"{what} for the workload {entry!r}, which does not ship with Slimfront, and what a file names is not "
        "imported: name the workload with --workload (workload= in Python), module:function or file.py:function"
    )


def _evaluation(provenance: Provenance, device: str | None, steps: tuple[int, ...], folder: Path) -> Evaluation:
    """The settings of the search, with a folder of its own."""
    where = resolve_device(device or provenance.device)
    return Evaluation(provenance.seed, provenance.chunk, provenance.threads, where, steps, folder)


def _score(loaded: LoadedWorkload, path: Path, provenance: Provenance, device: str | None) -> dict[str, float | None]:
    nothing = torch.empty(0)  # nothing is trained, calibrated or written here
    with _own_threads(provenance.threads):
        scorer = Scorer(loaded, _evaluation(provenance, device, (), Path()), Teacher(nothing, nothing))
        return {name: scorer.score_file(path, name).value for name in JUDGED}


@contextlib.contextmanager
def _own_threads(count: int) -> Iterator[None]:
    """Evaluate with the search's number of torch threads; the caller's number and determinism are restored."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
