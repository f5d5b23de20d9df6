"""A policy carried out again: its packed file made anew, or only what it does at each site."""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.apply import SiteReport
from compress.files import artifact_path, write_file
from objectives.evaluation import teach
from objectives.judging import FixedJudge
from objectives.replay import evaluation_of, own_threads, workload_of
from objectives.score import Scorer
from objectives.workload import LoadedWorkload
from spaces.errors import ConfigError, WorkloadError
from spaces.policy import PolicyFile


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
    steps = policy.distillation.ladder if policy.distillation else ()
    with tempfile.TemporaryDirectory() as folder, own_threads(policy.provenance.threads):
        scorer = _scorer(policy, workload, device, steps, Path(folder))
        score = scorer.score(policy.policy, FixedJudge())
        blob = artifact_path(Path(folder), str(score.artifact)).read_bytes()  # it was kept, as asked for
    try:
        write_file(output, blob)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    sha256, expected = hashlib.sha256(blob).hexdigest(), policy.artifact.sha256
    return Retrained(
        path=str(output),
        bytes=len(blob),
        sha256=sha256,
        accuracy=score.accuracy,
        expected_accuracy=policy.score.accuracy,
        same_file=None if expected is None else expected == sha256,
    )


@dataclass(frozen=True)
class Report:
    """What a policy does at each site.

    Attributes:
        sites: choice, sparsity, bytes, relative output error and note of each.
        trained: whether what was scored was trained after this, so that its codes and bytes are others.
    """

    sites: Sequence[SiteReport]
    trained: bool

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "trained_after": self.trained,
            "sites": [{**asdict(one), "choice": one.choice.model_dump(mode="json")} for one in self.sites],
        }


def report(policy: PolicyFile, *, workload: str | None = None) -> Report:
    """What a policy does at each site when it is carried out, before any training.

    Args:
        policy: what to carry out.
        workload: `module:function` or `file.py:function`; None is the policy's, if that ships with Slimfront.

    Raises:
        WorkloadError: the workload is not known, cannot be loaded, or its model or data have changed.
        CandidateError: the policy cannot be carried out.
    """
    with tempfile.TemporaryDirectory() as folder, own_threads(policy.provenance.threads):
        scorer = _scorer(policy, workload, None, (), Path(folder))
        return Report(scorer.report(policy.policy), trained=policy.score.rung > 0)


def _scorer(
    policy: PolicyFile, workload: str | None, device: str | None, steps: tuple[int, ...], folder: Path
) -> Scorer:
    loaded = workload_of(policy.workload.entry, workload, "the policy was found")
    _require_unchanged(loaded, policy)
    evaluation = evaluation_of(policy, device, steps, folder)
    return Scorer(loaded, evaluation, teach(loaded, evaluation))


def _require_unchanged(loaded: LoadedWorkload, policy: PolicyFile) -> None:
    for what, now, then in (
        ("float model", loaded.model_sha256, policy.workload.model_sha256),
        ("data", loaded.data_sha256, policy.workload.data_sha256),
    ):
        if now != then:
            raise WorkloadError(
                f"{loaded.entry}: its {what} changed since the policy was found (SHA-256 {now[:12]}..., then "
                f"{then[:12]}...): what is made of it now would be something else; restore it, or search again"
            )
