"""The models of a workload as they are compressed: what they are made from, and what a policy may name of them."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.inputs import outputs
from objectives.evaluation import Evaluation, needs_gradients, no_teacher, teach
from objectives.models import Models
from objectives.score import Scorer
from objectives.workload import LoadedWorkload, load_workload, sha256_of
from spaces.errors import CandidateError
from spaces.policy import (
    ChannelPruning,
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    Policy,
    StaticActivations,
    Uniform,
    Unstructured,
)
from tests import tiny
from tests.models import digest
from tests.scoring import Until, evaluation, scorer_of

FIRST = "group-first"
CRITERIA = ["l1", "l2", "random", "taylor", "apoz", "batchnorm", "wanda", "hessian"]


@pytest.fixture
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:workload")


def models_of(loaded: LoadedWorkload, settings: Evaluation) -> Models:
    return Models(loaded, settings, teach(loaded, settings))


def every_site(choice: Choice) -> dict[str, Choice]:
    return dict.fromkeys(("first", "second", "head"), choice)


class TestVariants:
    @pytest.mark.parametrize("criterion", CRITERIA)
    @pytest.mark.parametrize("refit", [False, True])
    def test_a_share_of_the_channels_goes(
        self, loaded: LoadedWorkload, criterion: str, refit: bool, tmp_path: Path
    ) -> None:
        models = models_of(loaded, replace(evaluation(tmp_path), gradients=True))
        how = ChannelPruning(criterion=criterion, refit=refit)  # type: ignore[arg-type]
        policy = Policy(sites=every_site(Choice()), channels={FIRST: 0.5}, channel_pruning=how)
        variant = models.variant(policy)
        shapes = {site.name: site.shape for site in variant.sites}
        assert shapes == {"first": (12, 8), "second": (16, 12), "head": (6, 16)}
        assert variant.model.get_buffer("norm.running_mean").shape == (12,)
        assert {cut.refit for cut in variant.cuts.values()} == {refit}
        assert models.variant(policy) is variant

    @pytest.mark.parametrize(
        ("ratio", "multiple", "left"), [(0.5, 8, 8), (0.3, 8, 16), (0.9, 8, 8), (0.1, 1, 22), (0.99, 1, 1)]
    )
    def test_the_number_that_stays_is_a_multiple(
        self, loaded: LoadedWorkload, ratio: float, multiple: int, left: int, tmp_path: Path
    ) -> None:
        how = ChannelPruning(criterion="l2", multiple=multiple)
        policy = Policy(sites=every_site(Choice()), channels={FIRST: ratio}, channel_pruning=how)
        assert models_of(loaded, evaluation(tmp_path)).variant(policy).model.get_parameter("first.weight").shape[0] in (
            left,
            left + multiple,  # half-way
        )

    def test_what_the_model_does_not_have_is_named(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        models = models_of(loaded, evaluation(tmp_path))
        with pytest.raises(CandidateError, match=r"no group of channels 'group-tail'; it has group-first"):
            models.variant(Policy(sites={}, channels={"group-tail": 0.5}))
        with pytest.raises(CandidateError, match=r"no residual blocks \['tail'\]; it has \[\]"):
            models.variant(Policy(sites={}, dropped=("tail",)))
        with pytest.raises(CandidateError, match="no model 'tail'"):
            models.variant(Policy(sites={}, model="tail"))

    def test_fitted_weights_lose_less_than_the_others(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        scorer = scorer_of(loaded, evaluation(tmp_path))
        losses = []
        for refit in (True, False):
            how = ChannelPruning(criterion="wanda", refit=refit)
            policy = Policy(sites=every_site(Choice()), channels={FIRST: 0.5}, channel_pruning=how)
            losses.append(scorer.score(policy, Until(0, kept=False)).rungs[0].loss)
        assert losses[0] < losses[1]

    def test_a_cut_candidate_is_scored_trained_and_its_file_is_what_was_scored(
        self, loaded: LoadedWorkload, tmp_path: Path
    ) -> None:
        from tests.scoring import policy as random_policy

        scorer = scorer_of(loaded, evaluation(tmp_path))
        whole = random_policy(3)
        cut = whole.model_copy(update={"channels": {FIRST: 0.5}, "channel_pruning": ChannelPruning()})
        scores = {rung: scorer.score(cut, Until(rung)) for rung in (0, 1, 2)}
        assert scores[0].bytes < scorer.score(whole, Until(0, kept=False)).bytes
        assert scores[0].macs < 0.7 * scorer.float_score().macs
        for score in scores.values():
            assert score.artifact is not None
            path = tmp_path / "artifacts" / f"{score.artifact}.safetensors"
            assert path.stat().st_size == score.bytes
            fresh = scorer_of(load_workload("tests.tiny:workload"), evaluation(tmp_path))
            assert fresh.score_file(path, "validation").value == score.accuracy


class TestStatistics:
    @pytest.mark.parametrize("entry", ["workload", "regression", "unlabelled", "scalar"])
    def test_gradients_are_there_where_they_are_needed(self, entry: str, tmp_path: Path) -> None:
        loaded = load_workload(f"tests.tiny:{entry}")
        policy = Policy(
            sites=every_site(
                Choice(prune=Unstructured(ratio=0.5, criterion="taylor"), weights=Codebook(bits=3, fisher=True))
            )
        )
        assert needs_gradients(policy.sites.values())
        scorer = scorer_of(loaded, replace(evaluation(tmp_path), gradients=True))
        assert scorer.score(policy, Until(0, kept=False)).bytes > 0
        assert all(one.gradient is not None for one in scorer.models.statistics(None).values())
        without = scorer_of(loaded, evaluation(tmp_path / "without"))
        with pytest.raises(CandidateError, match="site first: criterion taylor needs a gradient"):
            without.score(policy, Until(0, kept=False))
        assert all(one.gradient is None for one in without.models.statistics(None).values())

    def test_who_needs_gradients(self) -> None:
        assert needs_gradients([], ChannelPruning(criterion="taylor"))
        assert not needs_gradients([Choice()], ChannelPruning(criterion="wanda"))
        assert not needs_gradients(
            [Choice(prune=Unstructured(ratio=0.5, criterion="hessian")), Choice(weights=Codebook(bits=2))]
        )

    def test_they_are_collected_once_and_not_at_all_where_all_is_there(
        self, loaded: LoadedWorkload, tmp_path: Path
    ) -> None:
        policy = Policy(sites=every_site(Choice(weights=Uniform(bits=3, rounding="gptq"))))
        first, second = (scorer_of(loaded, evaluation(tmp_path)) for _ in range(2))
        scores = [scorer.score(policy, Until(0)) for scorer in (first, first, second)]
        assert first.models.statistics(None) is first.models.statistics(None)
        assert second.models._statistics == {}
        assert len({score.artifact for score in scores}) == 1

    def test_other_data_or_chunks_give_other_layers(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        other = replace(loaded, data_sha256="other")
        settings = evaluation(tmp_path)
        for one, how in (
            (loaded, settings),
            (loaded, settings),
            (other, settings),
            (loaded, replace(settings, chunk=16)),
        ):
            scorer_of(one, how).report(Policy(sites=every_site(Choice(weights=Float16()))))
        assert len(list((tmp_path / "layers").glob("*/*"))) == 3 * 3


def curved(model: nn.Module) -> nn.Module:
    """The same weights with another activation function."""
    other = copy.deepcopy(model)
    other.relu = nn.GELU()
    return other


def keys_of(loaded: LoadedWorkload, settings: Evaluation, name: str | None = None) -> list[str]:
    database = models_of(loaded, settings).database(name)
    return [database._key(site, Choice(), None) for site in ("first", "head")]


KEYS = """
import json, sys
from dataclasses import replace
from pathlib import Path
from tests.test_models import evaluation, keys_of, load_workload
settings = [replace(evaluation(Path()), gradients=gradients) for gradients in (False, True)]
taught = load_workload("tests.tiny:taught")
print(json.dumps([keys_of(taught, one, name) for one in settings for name in (None, "leaky")]))
"""


class TestIdentity:
    """Compressed layers are found again only by models that compute the same from the same."""

    @pytest.mark.parametrize("smoothing", [None, 0.5])
    def test_another_activation_function_gives_other_layers(
        self, loaded: LoadedWorkload, smoothing: float | None, tmp_path: Path
    ) -> None:
        settings, other = replace(evaluation(tmp_path), smoothing=smoothing), curved(loaded.model)
        assert sha256_of(other.state_dict()) == sha256_of(loaded.model.state_dict())
        assert not set(keys_of(loaded, settings)) & set(keys_of(replace(loaded, model=other), settings))

    def test_of_a_student_too(self, tmp_path: Path) -> None:
        taught = load_workload("tests.tiny:taught")
        other = replace(taught, students={**taught.students, "narrow": curved(taught.students["narrow"])})
        found = [keys_of(one, evaluation(tmp_path), name) for one in (taught, other) for name in ("narrow", "leaky")]
        assert found[0] != found[2]
        assert found[1] == found[3]

    def test_another_loss_gives_other_layers_where_gradients_count(
        self, loaded: LoadedWorkload, tmp_path: Path
    ) -> None:
        smoothed = replace(loaded.workload, loss=nn.CrossEntropyLoss(label_smoothing=0.1))
        both = (loaded, replace(loaded, workload=smoothed))
        plain = evaluation(tmp_path)
        without, counting = ([keys_of(one, how) for one in both] for how in (plain, replace(plain, gradients=True)))
        assert without[0] == without[1]
        assert not set(counting[0]) & set(counting[1])
        assert without[0] != counting[0]

    @pytest.mark.parametrize("entry", ["regression", "unlabelled"])
    def test_every_loss_has_one(self, entry: str, tmp_path: Path) -> None:
        settings = replace(evaluation(tmp_path), gradients=True)
        found = [keys_of(load_workload(f"tests.tiny:{entry}"), settings) for _ in range(2)]
        assert found[0] == found[1]

    def test_it_does_not_depend_on_who_computed_the_outputs_and_is_computed_once(self, tmp_path: Path) -> None:
        loaded, settings = load_workload("tests.tiny:counting"), evaluation(tmp_path)
        model = loaded.model
        assert isinstance(model, tiny.Counting)
        models = Models(loaded, settings, no_teacher())
        database = models.database(None)
        passes = len(model.seen)
        assert models.database(None) is database
        assert len(model.seen) == passes
        name = models.member(None).sites[0].name
        assert database._key(name, Choice(), None) == models_of(loaded, settings).database(None)._key(
            name, Choice(), None
        )

    def test_another_process_has_the_same(self, tmp_path: Path) -> None:
        made = subprocess.run([sys.executable, "-c", KEYS], check=True, capture_output=True, text=True)
        taught = load_workload("tests.tiny:taught")
        settings = [replace(evaluation(tmp_path), gradients=gradients) for gradients in (False, True)]
        mine = [keys_of(taught, one, name) for one in settings for name in (None, "leaky")]
        assert json.loads(made.stdout) == mine
        assert len({key for keys in mine for key in keys}) == 8


class TestSmoothing:
    def test_the_model_gives_the_same_and_its_file_loads(self, tmp_path: Path) -> None:
        loaded = load_workload("tests.tiny:normed")
        before = digest(loaded.model)
        smooth = replace(evaluation(tmp_path), smoothing=0.5)
        models = [models_of(loaded, settings) for settings in (evaluation(tmp_path), smooth)]
        plain, smoothed = (one.member(None).model for one in models)
        inputs = loaded.splits["validation"].inputs
        assert sha256_of(plain.state_dict()) != sha256_of(smoothed.state_dict())
        assert torch.allclose(outputs(plain, inputs, 32), outputs(smoothed, inputs, 32), atol=1e-4)
        assert digest(loaded.model) == before
        choice = Choice(weights=Uniform(bits=8), activations=StaticActivations(bits=5))
        policy = Policy(sites={"first": choice, "head": choice}, smoothing=0.5)
        scorer = scorer_of(loaded, smooth)
        score = scorer.score(policy, Until(0))
        path = tmp_path / "artifacts" / f"{score.artifact}.safetensors"
        fresh = scorer_of(load_workload("tests.tiny:normed"), evaluation(tmp_path))
        assert fresh.score_file(path, "validation").value == score.accuracy

    def test_outliers_cost_less(self, tmp_path: Path) -> None:
        loaded = load_workload("tests.tiny:normed")
        choice = Choice(weights=Uniform(bits=8), activations=DynamicActivations(bits=4))
        losses = []
        for alpha in (None, 0.5):
            scorer = scorer_of(loaded, replace(evaluation(tmp_path), smoothing=alpha))
            policy = Policy(sites={"first": choice, "head": Choice()}, smoothing=alpha)
            losses.append(scorer.score(policy, Until(0, kept=False)).rungs[0].loss)
        assert losses[1] < losses[0]


class TestReport:
    def test_it_has_a_line_for_each_site(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        sites = every_site(Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)))
        scorer = scorer_of(loaded, evaluation(tmp_path))
        whole = scorer.report(Policy(sites=sites))
        cut = scorer.report(Policy(sites=sites, channels={FIRST: 0.5}, channel_pruning=ChannelPruning()))
        assert [line.site for line in whole] == [line.site for line in cut] == ["first", "second", "head"]
        assert all(0.5 <= line.sparsity < 0.6 for line in (*whole, *cut))
        assert cut[1].bytes < 0.6 * whole[1].bytes
        assert whole == scorer.report(Policy(sites=sites))

    def test_reporting_changes_no_score(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        sites, settings = every_site(Choice(weights=Uniform(bits=3))), evaluation(tmp_path)
        scorer = Scorer(loaded, settings, teach(loaded, settings))
        first = scorer.score(Policy(sites=sites), Until(0))
        scorer.report(Policy(sites=sites))
        assert scorer.score(Policy(sites=sites), Until(0)).artifact == first.artifact
        assert isinstance(loaded.model, nn.Module)
