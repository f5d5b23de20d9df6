"""How much loss each choice at a site is predicted to cost, in four ways; computed once and kept on disk."""

import contextlib
import copy
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from compress.coding import CodedWeight
from compress.family import Variant
from compress.files import write_file
from compress.quantization.activations import leave_inputs_float, quantize_inputs
from compress.restriction import restricted
from compress.sensitivity import fisher_loss, gradient_loss
from compress.sites import Site
from objectives.bases import Base
from objectives.failures import sorted_failures
from objectives.score import Scorer
from objectives.workload import sha256_of
from spaces.errors import CandidateError
from spaces.policy import Choice, Policy

CODE_VERSION = 2  # of everything that shapes a sensitivity and not a layer: raise it when a result changes
BATCH = 2**26  # weights of one site that are held compressed together, all choices counted
KINDS = ("output", "fisher", "gradient", "kl")

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SiteSensitivity:
    """Of one site in one setting, all float64 (choices,); NaN where it cannot be known, or was not measured.

    Attributes:
        output: squared error of the output, relative to the output's square; of the weights where the input is not
            known.
        fisher: half the Fisher diagonal times the squared changes of weights; NaN where no gradient gets to the site.
        gradient: half the squared gradients at the output times squared changes of the output; NaN inside recurrent
            layers, embeddings and attention's input projection.
        kl: measured: KL divergence (mean squared error for values) to the brought model's outputs with this site
            alone changed, beyond the setting's own.
        forwards: samples run forward to know this; what a setting's sites share is counted at its first site.
        backwards: samples run backward.
    """

    output: Floats
    fisher: Floats
    gradient: Floats
    kl: Floats
    forwards: int
    backwards: int


def site_sensitivity(
    scorer: Scorer, policy: Policy, site: str, choices: Sequence[Choice], samples: int
) -> SiteSensitivity:
    """What each choice at a site costs, from the disk where it is there.

    It depends on the workload, the setting and the study's settings alone: not on what was asked before.

    Args:
        scorer: of the study.
        policy: the setting: which model, with which channels and blocks cut out; its choices do not matter.
        site: its name.
        choices: what could be done there.
        samples: calibration samples that `kl` is measured on, unsure ones rather than others (see
            `objectives.drawing.drawn`); 0 does not measure it.

    Raises:
        CandidateError: the setting has no such site, or a choice does not fit it.
        RetryableError: out of memory.
    """
    with sorted_failures(f"site {site}: "):
        variant, samples = scorer.models.variant(policy), max(0, samples)
        found = next((one for one in variant.sites if one.name == site), None)
        if found is None:
            raise CandidateError(f"site {site}: the setting has no such site; it has {[o.name for o in variant.sites]}")
        path = _path(scorer, policy, variant, found, choices, samples)
        if (known := _read(_known(scorer, path), len(choices))) is None:
            known = _site(scorer, policy, found, choices, samples)
            _write(scorer, path, _document(known))
        return known


def setting_loss(scorer: Scorer, policy: Policy, samples: int) -> float:
    """KL divergence to the brought model's outputs of a setting's float model; 0 where nothing is cut out.

    Sites that share the removal of channels are so measured together. Its passes are counted at the setting's first
    site.

    Args:
        scorer: of the study.
        policy: the setting; its choices do not matter.
        samples: calibration samples; 0 does not measure it: NaN, unless nothing is cut out.

    Raises:
        CandidateError: the setting does not fit the workload.
        RetryableError: out of memory.
    """
    with sorted_failures("sensitivities: "):
        variant = scorer.models.variant(policy)
        if variant.is_brought:
            return 0.0
        if samples <= 0:
            return math.nan
        path = _path(scorer, policy, variant, None, (), samples)
        loss = _known(scorer, path).get("loss")
        if not isinstance(loss, float):
            loss = scorer.models.base(policy).own_loss(samples)
            _write(scorer, path, {"loss": loss})
        return loss


def _site(scorer: Scorer, policy: Policy, site: Site, choices: Sequence[Choice], samples: int) -> SiteSensitivity:
    base, database = scorer.models.base(policy), scorer.models.database(policy.model)
    cut, probe = base.variant.cuts.get(site.name), _Probe(base, site, _hessian(scorer, policy, base.variant, site))
    rows: list[tuple[float, float, float, float]] = []
    forwards = backwards = 0
    if site.name == base.variant.sites[0].name:
        forwards, backwards = base.passes(measured=samples > 0)
    most = max(1, BATCH // site.size)
    for some in (choices[start : start + most] for start in range(0, len(choices), most)):
        plain = [one.model_copy(update={"activations": None}) for one in some]
        floats = database.costs(site, plain, cut)
        for layer, alone in zip(database.layers(site, some, cut), floats, strict=True):
            loss, run = probe.measured(layer.coded, samples)
            rows.append((layer.cost.error, *probe.predicted(layer.coded, layer.cost.error - alone.error), loss))
            forwards += run
    output, fisher, gradient, kl = np.array(rows, np.float64).reshape(-1, len(KINDS)).T.copy()
    return SiteSensitivity(output, fisher, gradient, kl, forwards, backwards)


def _hessian(scorer: Scorer, policy: Policy, variant: Variant, site: Site) -> torch.Tensor | None:
    """Of a site's input, (blocks, n, n); in a smaller model its inputs are taken to be those of the whole one."""
    known = scorer.models.statistics(policy.model)[site.name]
    if site.name in variant.cuts:
        whole = next(one for one in variant.member.sites if one.name == site.name)
        known = restricted(known, whole, site, variant.cuts[site.name].index)
    return known.hessian


class _Probe:
    """What happens when one site of a setting's float model is changed.

    Args:
        base: the setting.
        site: of it.
        hessian: of the site's input, (blocks, n, n), in this setting; None where it is not known.
    """

    def __init__(self, base: Base, site: Site, hessian: torch.Tensor | None) -> None:
        self._base, self._site, self._hessian = base, site, hessian
        self._model = copy.deepcopy(base.model).to(base.evaluation.device)
        self._weight = dict(self._model.named_parameters(remove_duplicate=False))[site.parameter]
        self._float = self._weight.detach().clone()
        self._rows = site.rows(self._float.float().cpu())

    def predicted(self, coded: CodedWeight, rounded_inputs: float) -> tuple[float, float]:
        """The loss by Fisher diagonal and by gradients at the output; NaN where no gradient gets there.

        Args:
            coded: the site's weights.
            rounded_inputs: squared error of its inputs, relative to their square. It counts as if the weights had it:
                both are factors of the same products.
        """
        gradient = self._base.slopes.get(self._site.name)
        if gradient is None:
            return math.nan, math.nan
        change = coded.decode() - self._rows
        fisher = fisher_loss(change, gradient)
        at_output = gradient_loss(change, gradient, self._hessian)
        if coded.inputs is not None:
            fisher += rounded_inputs * fisher_loss(self._rows, gradient)
            at_output += rounded_inputs * gradient_loss(self._rows, gradient, self._hessian)
        return fisher, at_output

    @torch.no_grad()
    def measured(self, coded: CodedWeight, samples: int) -> tuple[float, int]:
        """The loss beyond the setting's own, and how many samples were run; NaN for none."""
        if not samples:
            return math.nan, 0
        site, base = self._site, self._base
        try:
            self._weight.copy_(site.weight(coded.decode()))
            if coded.inputs is not None:
                names = [name.rpartition(".")[0] for name in (site.parameter, *site.tied)]
                quantize_inputs(self._model, dict.fromkeys(names, coded.inputs))
            elif torch.equal(self._weight, self._float):
                return 0.0, 0  # nothing was changed
            loss = base.loss(self._model, samples)
        finally:
            self._weight.copy_(self._float)
            leave_inputs_float(self._model)
        beyond = max(0.0, loss - base.own_loss(samples)) if math.isfinite(loss) else math.inf
        return beyond, len(base.drawn(samples)[0])


def _path(
    scorer: Scorer, policy: Policy, variant: Variant, site: Site | None, choices: Sequence[Choice], samples: int
) -> Path:
    """Where it is kept: named by all that shapes it."""
    at = site or variant.sites[0]
    database = scorer.models.database(policy.model)
    parts = [
        CODE_VERSION,
        database.digest(at.name, choices or (Choice(),), variant.cuts.get(at.name)),
        None if site is None else site.name,
        variant.layout.structure.hex(),
        None if variant.is_brought else sha256_of({"teacher": scorer.teacher.calibration}),
        scorer.loaded.workload.outputs,
        scorer.evaluation.device,
        samples,
    ]
    name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return scorer.evaluation.cache / "sensitivities" / name[:2] / f"{name}.json"


def _document(known: SiteSensitivity) -> dict[str, Any]:
    values = {kind: [None if math.isnan(x) else x for x in getattr(known, kind).tolist()] for kind in KINDS}
    return {**values, "forwards": known.forwards, "backwards": known.backwards}


def _read(about: dict[str, Any], choices: int) -> SiteSensitivity | None:
    """What a file says of so many choices; None where it was missing, damaged or something else."""
    try:
        found = [np.array([math.nan if x is None else x for x in about[kind]], np.float64) for kind in KINDS]
        if any(one.shape != (choices,) for one in found):
            return None
        output, fisher, gradient, kl = found
        return SiteSensitivity(output, fisher, gradient, kl, int(about["forwards"]), int(about["backwards"]))
    except (KeyError, TypeError, ValueError):
        return None


def _known(scorer: Scorer, path: Path) -> dict[str, Any]:
    """What was written to a file here or on another node; nothing where it is missing or not as it was written."""
    shared = scorer.models.shared
    try:
        about = _opened(path, path.read_bytes())
    except OSError:
        about = None
    if about is None and shared is not None:
        about = shared.get(_name(path), lambda blob: _opened(path, blob))
        if about is not None:
            _keep(scorer, path, _blob(path, about))
    return about or {}


def _opened(path: Path, blob: bytes) -> dict[str, Any] | None:
    """What a file says; None where it is not as it was written."""
    try:
        about = json.loads(blob)
        if isinstance(about, dict) and about.pop("digest", None) == _digest(path, about):
            return about
    except (ValueError, RecursionError):
        pass
    return None


def _write(scorer: Scorer, path: Path, about: dict[str, Any]) -> None:
    blob = _blob(path, about)
    _keep(scorer, path, blob)
    if scorer.models.shared is not None:
        scorer.models.shared.put(_name(path), blob)


def _keep(scorer: Scorer, path: Path, blob: bytes) -> None:
    """Keep it, where the study keeps layers; a full disk keeps nothing and is no error."""
    if scorer.evaluation.max_bytes:
        with contextlib.suppress(OSError):
            write_file(path, blob)


def _blob(path: Path, about: dict[str, Any]) -> bytes:
    return json.dumps({**about, "digest": _digest(path, about)}).encode()


def _name(path: Path) -> str:
    return f"sensitivities/{path.parent.name}/{path.name}"


def _digest(path: Path, about: dict[str, Any]) -> str:
    return hashlib.sha256(f"{path.stem} {json.dumps(about, sort_keys=True)}".encode()).hexdigest()
