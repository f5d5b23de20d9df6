"""What compensating for errors and taking channels out must be worth, on the workloads that ship."""

import statistics
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import pytest
import torch

from compress.apply import Applied, apply
from compress.distillation import soft_loss
from compress.inputs import outputs, take
from compress.pruning.channel_scores import kept_channels, scores
from compress.sites import find_sites
from compress.structure import Structure, masked, restructure
from objectives.compute import dense_macs
from objectives.evaluation import Evaluation, teach
from objectives.judging import judge
from objectives.score import Scorer
from objectives.splits import Split
from objectives.workload import LoadedWorkload, load_workload
from spaces.policy import ChannelPruning, Choice, Uniform, Unstructured

CHUNK = 500
SEEDS = (1, 2)
LEVEL = 0.01  # accuracies that differ by less are level

NEAREST = Choice(weights=Uniform(bits=3))
COMPENSATED = Choice(weights=Uniform(bits=3, rounding="gptq"))
PRUNED = Choice(prune=Unstructured(ratio=0.6), weights=Uniform(bits=4))
JOINT = Choice(prune=Unstructured(ratio=0.6, criterion="hessian"), weights=Uniform(bits=4, rounding="gptq"))

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Measured:
    """KL to the float model and accuracy that is lost, on validation; bytes of the packed sites."""

    divergence: float
    lost: float
    bytes: float


def loaded_of(name: str) -> LoadedWorkload:
    return load_workload(f"objectives.workloads.{name}:workload")


def scorer_of(loaded: LoadedWorkload, folder: Path) -> Scorer:
    evaluation = Evaluation(0, CHUNK, 1, "cpu", (), folder, max_bytes=0)
    return Scorer(loaded, evaluation, teach(loaded, evaluation))


def redrawn(loaded: LoadedWorkload, seed: int) -> LoadedWorkload:
    """The workload with as many other calibration images, drawn from those of train and calibration."""
    train, calibration = loaded.splits["train"].inputs, loaded.splits["calibration"].inputs
    assert isinstance(train, torch.Tensor)
    assert isinstance(calibration, torch.Tensor)
    images = torch.cat([train, calibration])
    drawn = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[: len(calibration)]
    splits = {**loaded.splits, "calibration": Split(images[drawn], None)}
    return replace(loaded, splits=splits, data_sha256=f"calibration {seed}")


def once(scorer: Scorer, choices: Mapping[str, Choice]) -> tuple[Measured, Applied]:
    """A choice for each site, without any correction afterwards: roundings alone are compared."""
    loaded, inputs = scorer.loaded, scorer.loaded.splits["validation"].inputs
    applied = apply(loaded.model, loaded.sites, choices, scorer.models.database(None))
    assert not [site.note for site in applied.report if site.note], "nothing fell back"
    wanted, got = outputs(loaded.model, inputs, CHUNK), outputs(applied.model, inputs, CHUNK)
    lost = judge(loaded, wanted, "validation").value - judge(loaded, got, "validation").value
    size = sum(site.bytes for site in applied.report)
    return Measured(float(soft_loss(got, wanted, 1.0, "logits")), lost, size), applied


def measured(name: str, folder: Path, *choices: Choice) -> list[Measured]:
    """Each choice at all sites of a workload, means over calibration seeds."""
    loaded, found = loaded_of(name), []
    for seed in SEEDS:
        scorer = scorer_of(redrawn(loaded, seed), folder)
        found.append([once(scorer, {site.name: choice for site in loaded.sites})[0] for choice in choices])
    return [
        Measured(*(statistics.mean(each) for each in zip(*map(astuple, of_seeds), strict=True)))
        for of_seeds in zip(*found, strict=True)
    ]


@pytest.mark.parametrize("name", ["animals", "digits", "lenet"])
class TestCompensating:
    def test_it_loses_at_most_half_of_what_rounding_to_nearest_loses_at_3_bits(self, name: str, tmp_path: Path) -> None:
        near, swept = measured(name, tmp_path, NEAREST, COMPENSATED)
        assert swept.divergence <= near.divergence / 2
        assert swept.lost <= near.lost / 2 or max(swept.lost, near.lost) <= LEVEL
        if name != "lenet":  # of its weights most are zero, so that its bytes depend on where the zeros are
            assert swept.bytes == pytest.approx(near.bytes, rel=0.01)

    def test_the_joint_sweep_beats_magnitude_and_nearest_at_60_percent_and_4_bits(
        self, name: str, tmp_path: Path
    ) -> None:
        plain, joint = measured(name, tmp_path, PRUNED, JOINT)
        assert joint.divergence < plain.divergence
        assert joint.lost < plain.lost
        if name != "lenet":
            assert joint.bytes == pytest.approx(plain.bytes, rel=0.01)


@pytest.mark.parametrize(("choice", "bits"), [(NEAREST, 3), (PRUNED, 4)], ids=["3 bits", "60 % and 4 bits"])
def test_compensating_wins_at_no_more_bytes_where_most_weights_are_zero(
    choice: Choice, bits: int, tmp_path: Path
) -> None:
    """Rounding to nearest leaves more zeros in `lenet`; the joint sweep is given as many at each site."""
    scorer = scorer_of(redrawn(loaded_of("lenet"), SEEDS[0]), tmp_path)
    near, applied = once(scorer, {site.name: choice for site in scorer.loaded.sites})
    as_sparse = {
        site.site: Choice(
            prune=Unstructured(ratio=site.sparsity, criterion="hessian"), weights=Uniform(bits=bits, rounding="gptq")
        )
        for site in applied.report
    }
    swept, _ = once(scorer, as_sparse)
    assert swept.bytes <= near.bytes
    assert swept.divergence <= near.divergence / 2
    assert swept.lost <= near.lost / 2 or max(swept.lost, near.lost) <= LEVEL


class TestChannels:
    def test_half_of_them_gone_leaves_at_most_30_percent_of_the_work_and_the_masked_models_outputs(
        self, tmp_path: Path
    ) -> None:
        loaded, how = loaded_of("animals"), ChannelPruning(multiple=8)
        models, example = scorer_of(loaded, tmp_path).models, loaded.workload.example_input
        member, known = models.member(None), models.statistics(None)
        kept = {
            group.name: kept_channels(scores(member.model, group, how.criterion, known), 0.5, group.step(how.multiple))
            for group in member.groups
        }
        smaller = restructure(loaded.model, member.groups, Structure(kept))
        work = [
            sum(dense_macs(one, sites, example).values())
            for one, sites in ((loaded.model, loaded.sites), (smaller.model, find_sites(smaller.model)))
        ]
        assert work[1] <= 0.3 * work[0]
        some = take(loaded.splits["validation"].inputs, slice(CHUNK))
        got, wanted = (outputs(one, some, CHUNK) for one in (smaller.model, masked(loaded.model, smaller.index)))
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-4)
