"""A score is what an independent evaluation of the written file gives, always the same, and changes nothing else."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from compress.family import Family, Member
from compress.files import artifact_path
from compress.inputs import call
from objectives.evaluation import seed_of, teach
from objectives.racing import Race, typical_loss
from objectives.score import Score, Scorer
from objectives.splits import SPLITS
from objectives.workload import LoadedWorkload, load_workload
from spaces.errors import ArtifactError, CandidateError, RetryableError
from spaces.policy import Choice, Float32, Policy, Unstructured
from tests.scoring import CHUNK, Until, coarse, evaluation, policy, scorer_of


@pytest.fixture
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:workload")


@pytest.fixture
def scorer(loaded: LoadedWorkload, tmp_path: Path) -> Scorer:
    return scorer_of(loaded, evaluation(tmp_path))


def plain(score: Score) -> Score:
    """A score without its times."""
    return replace(score, rungs=tuple(replace(rung, seconds=0.0) for rung in score.rungs))


def sha256(tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))).hexdigest()


def outcomes(model: nn.Module, loaded: LoadedWorkload, split: str) -> Tensor:
    """An evaluation of its own, in the same chunks."""
    inputs, targets = loaded.splits[split].inputs, loaded.splits[split].targets  # type: ignore[index]
    assert isinstance(inputs, Tensor)
    with torch.no_grad():
        out = torch.cat([call(model.eval(), inputs[i : i + CHUNK]) for i in range(0, len(inputs), CHUNK)])
    result = loaded.workload.metric(out, targets)  # type: ignore[arg-type]
    return torch.as_tensor(result).double()


@pytest.mark.parametrize("entry", ["workload", "regression", "scalar", "unlabelled"])
@pytest.mark.parametrize("rung", [0, 1, 2])
def test_the_written_file_has_the_scored_bytes_and_accuracy(entry: str, rung: int, tmp_path: Path) -> None:
    loaded = load_workload(f"tests.tiny:{entry}")
    scorer = scorer_of(loaded, evaluation(tmp_path))
    for number in range(4):
        score = scorer.score(policy(number), Until(rung))
        assert score.rung == rung
        assert score.artifact is not None
        path = artifact_path(tmp_path, score.artifact)
        assert path.stat().st_size == score.bytes == score.rungs[-1].bytes
        assert hashlib.sha256(path.read_bytes()).hexdigest() == score.artifact

        again = load_workload(f"tests.tiny:{entry}")
        model = Family({None: Member(None, again.model, None, again.entry)}).load(path)
        assert float(outcomes(model, again, "validation").mean()) == score.accuracy
        validation, test = scorer.score_file(path, "validation"), scorer.score_file(path, "test")
        assert (validation.value, validation.ci95) == (score.accuracy, score.ci95)
        assert test.value == float(outcomes(model, again, "test").mean())


@pytest.mark.parametrize("entry", ["workload", "regression", "unlabelled"])
def test_a_fresh_scorer_gives_the_same_bits(entry: str, tmp_path: Path) -> None:
    scores = []
    for order in (range(6), range(5, -1, -1)):  # what was scored before does not matter
        scorer = scorer_of(load_workload(f"tests.tiny:{entry}"), evaluation(tmp_path))
        torch.manual_seed(order[0])  # nor does the global generator
        torch.rand(order[0])
        scores.append({number: plain(scorer.score(policy(number), Until(2))) for number in order})
    assert scores[0] == scores[1]


def test_training_draws_from_the_seed_and_the_policy(loaded: LoadedWorkload, tmp_path: Path) -> None:
    scorers = [scorer_of(loaded, evaluation(tmp_path, seed)) for seed in (0, 1)]
    scores = [scorer.score(coarse(), Until(1)) for scorer in scorers]
    assert replace(scores[0].rungs[0], seconds=0) == replace(scores[1].rungs[0], seconds=0)
    assert scores[0].artifact != scores[1].artifact
    seeds = [seed_of(0, "a"), seed_of(1, "a"), seed_of(0, "b")]
    assert len(set(seeds)) == 3
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_scoring_changes_neither_model_nor_data(loaded: LoadedWorkload, tmp_path: Path) -> None:
    settings = evaluation(tmp_path)
    teacher = teach(loaded, settings)
    shared = {f"{name} {i}": part for name in SPLITS for i, part in enumerate(_parts(loaded, name))}
    shared |= {"teacher": teacher.train.at(torch.arange(96)), "calibration": teacher.calibration}
    before = sha256(loaded.model.state_dict()), sha256(shared)
    scorer = Scorer(loaded, settings, teacher)
    for number in range(6):
        scorer.score(policy(number), Until(2))
    assert (sha256(loaded.model.state_dict()), sha256(shared)) == before
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    assert all(not module._forward_hooks for module in loaded.model.modules())


def _parts(loaded: LoadedWorkload, name: str) -> list[Tensor]:
    split = loaded.splits[name]  # type: ignore[index]
    assert isinstance(split.inputs, Tensor)
    return [split.inputs] if split.targets is None else [split.inputs, split.targets]


class TestRungs:
    def test_nobody_goes_on_unpromoted(self, scorer: Scorer) -> None:
        promote = Until(0)
        score = scorer.score(policy(1), promote)
        assert [rung.rung for rung in score.rungs] == [0]
        assert promote.asked == [(0, score.accuracy, score.bytes)]

    def test_each_rung_is_promoted_by_its_own_score(self, scorer: Scorer) -> None:
        promote = Until(2)
        score = scorer.score(policy(2), promote)
        assert promote.asked == [(rung.rung, rung.accuracy, rung.bytes) for rung in score.rungs[:2]]
        assert (score.accuracy, score.bytes, score.macs, score.rung) == (
            score.rungs[-1].accuracy,
            score.rungs[-1].bytes,
            score.rungs[-1].macs,
            2,
        )

    def test_a_longer_way_begins_like_a_shorter_one(self, scorer: Scorer) -> None:
        ways = [plain(scorer.score(policy(3), Until(last))).rungs for last in range(3)]
        assert ways[2][:2] == ways[1]
        assert ways[1][:1] == ways[0]

    def test_a_student_that_unlearned_is_not_taken(self, scorer: Scorer) -> None:
        for number in range(6):
            losses = [rung.loss for rung in scorer.score(policy(number), Until(2, kept=False)).rungs]
            assert losses == sorted(losses, reverse=True)

    def test_training_helps_where_much_was_lost(self, scorer: Scorer) -> None:
        rungs = scorer.score(coarse(), Until(2, kept=False)).rungs
        assert rungs[2].loss < rungs[1].loss < rungs[0].loss

    def test_a_policy_that_is_not_distilled_stays_on_rung_0(self, scorer: Scorer) -> None:
        promote = Until(2)
        assert scorer.score(policy(1, distilled=False), promote).rung == 0
        assert promote.asked == []

    def test_without_steps_there_is_one_rung_and_no_teacher_for_training(
        self, loaded: LoadedWorkload, tmp_path: Path
    ) -> None:
        settings = evaluation(tmp_path, steps=())
        assert teach(loaded, settings).train.at(torch.arange(0)).shape == (0, 6)
        assert scorer_of(loaded, settings).score(policy(1), Until(2)).rung == 0


class TestNumbers:
    def test_float_weights_score_what_the_float_model_does(self, scorer: Scorer, loaded: LoadedWorkload) -> None:
        found = scorer.float_score()
        sites = dict.fromkeys(("first", "second", "head"), Choice(weights=Float32()))
        score = scorer.score(Policy(sites=sites), Until(0, kept=False))
        assert (score.bytes, score.accuracy, score.macs) == (found.bytes, found.validation.value, found.macs)
        assert score.rungs[0].loss == pytest.approx(0, abs=1e-9)
        assert found.validation.value == float(outcomes(loaded.model, loaded, "validation").mean())
        assert found.test.value == float(outcomes(loaded.model, loaded, "test").mean())
        assert found.macs == 8 * 24 + 24 * 16 + 16 * 6

    def test_one_shot_bytes_are_known_before(self, scorer: Scorer) -> None:
        for number in range(6):
            whole, database = scorer.models.member(None).whole, scorer.models.database(None)
            costs = [database.cost(site, policy(number).sites[site.name]) for site in whole.sites]
            expected = whole.layout.file_bytes(sum(cost.bytes for cost in costs))
            assert scorer.score(policy(number), Until(0, kept=False)).bytes == expected

    def test_pruned_weights_cost_no_macs(self, scorer: Scorer) -> None:
        half = Choice(prune=Unstructured(ratio=0.5), weights=Float32())
        sites = {"first": half, "second": Choice(), "head": Choice()}
        assert scorer.score(Policy(sites=sites), Until(0, kept=False)).macs == 4 * 24 + 24 * 16 + 16 * 6

    def test_a_metric_of_one_number_has_no_interval(self, tmp_path: Path) -> None:
        scores = []
        for entry in ("workload", "scalar"):
            scorer = scorer_of(load_workload(f"tests.tiny:{entry}"), evaluation(tmp_path))
            scores.append(scorer.score(policy(4), Until(1, kept=False)))
        assert scores[0].ci95 is not None
        assert scores[1].ci95 is None
        assert scores[0].accuracy == pytest.approx(scores[1].accuracy, abs=1e-7)


class TestRewinding:
    """Weights that stay start from those that the workload offers as early ones."""

    def rewinding(self, **changes: object) -> Policy:
        distilled = coarse().distillation
        assert distilled is not None
        return coarse().model_copy(update={"distillation": distilled.model_copy(update={"rewind": True}), **changes})

    @pytest.mark.parametrize("channels", [{}, {"group-first": 0.5}])
    def test_they_lead_elsewhere_and_are_scored_as_written(self, channels: dict[str, float], tmp_path: Path) -> None:
        loaded = load_workload("tests.tiny:taught")
        scorer, changes = scorer_of(loaded, evaluation(tmp_path, steps=(300,))), {"channels": channels}
        plain = scorer.score(coarse().model_copy(update=changes), Until(1))
        score = scorer.score(self.rewinding(**changes), Until(1))
        again = scorer_of(loaded, evaluation(tmp_path, steps=(300,))).score(self.rewinding(**changes), Until(1))
        assert score.rungs[0] == replace(plain.rungs[0], seconds=score.rungs[0].seconds)
        assert score.rungs[1].loss < score.rungs[0].loss
        assert score.artifact != plain.artifact
        assert score.artifact == again.artifact
        assert score.artifact is not None
        path = artifact_path(tmp_path, score.artifact)
        assert scorer.score_file(path, "validation").value == score.accuracy

    def test_a_workload_without_any_is_told_what_to_do(self, scorer: Scorer) -> None:
        words = r"no early weights of its model: give Workload\(early=...\), or set distillation.rewind to false"
        with pytest.raises(CandidateError, match=words):
            scorer.score(self.rewinding(), Until(1, kept=False))
        assert scorer.score(self.rewinding(), Until(0, kept=False)).rung == 0  # nothing is trained there

    def test_a_smaller_model_has_none_and_goes_on_from_what_it_is(self, tmp_path: Path) -> None:
        scorer = scorer_of(load_workload("tests.tiny:taught"), evaluation(tmp_path))
        rewinding = self.rewinding(model="narrow")
        assert rewinding.distillation is not None
        plain = rewinding.model_copy(
            update={"distillation": rewinding.distillation.model_copy(update={"rewind": False})}
        )
        found = [scorer.score(one, Until(1, kept=False)).rungs[0] for one in (rewinding, plain)]
        assert found[0].accuracy == found[1].accuracy
        assert scorer.score(rewinding, Until(1, kept=False)).rung == 1


class Racing(Until):
    """Promotes like its parent, and has every rung from `first` on race against a threshold."""

    def __init__(self, last: int, threshold: float, first: int = 0) -> None:
        super().__init__(last)
        self.threshold, self.first = threshold, first
        self.raced: list[tuple[int, int]] = []

    def race(self, rung: int, bytes: int) -> Race | None:
        self.raced.append((rung, bytes))
        return Race(self.threshold, (), 0.95) if rung >= self.first else None


class TestRaces:
    def test_who_loses_on_a_rung_ends_there_and_is_not_kept(self, scorer: Scorer) -> None:
        for first in (0, 1, 2):
            judge = Racing(2, threshold=3.0, first=first)
            score = scorer.score(coarse(), judge)
            assert (score.rung, score.stopped, score.artifact) == (first, True, None)
            assert score.accuracy == score.rungs[-1].accuracy <= 3.0 - 1 / 300
            assert [rung.samples for rung in score.rungs[:-1]] == [150] * first
            assert score.rungs[-1].samples < 150
            assert [one is None for one in score.outcomes] == [False] * first + [True]
            assert judge.raced == [(rung.rung, rung.bytes) for rung in score.rungs]

    def test_who_wins_scores_as_without_a_race(self, scorer: Scorer) -> None:
        for number in range(4):
            raced, alone = (scorer.score(policy(number), judge) for judge in (Racing(2, -1.0), Until(2)))
            assert plain(raced) == plain(alone)
            assert not raced.stopped

    def test_outcomes_are_those_of_each_rung(self, scorer: Scorer) -> None:
        score = scorer.score(coarse(), Until(2))
        for rung, found in zip(score.rungs, score.outcomes, strict=True):
            assert found is not None
            assert found.values.mean() == pytest.approx(rung.accuracy)
            assert typical_loss(found.losses) == pytest.approx(rung.validation_loss)

    def test_one_shot_is_what_rung_0_scores(self, scorer: Scorer) -> None:
        score, shot = scorer.score(policy(2), Until(0)), scorer.one_shot(policy(2))
        rung = score.rungs[0]
        assert (shot.bytes, shot.macs, shot.calibration_loss) == (rung.bytes, rung.macs, rung.loss)
        assert rung.forwards == shot.forwards + 150
        found = scorer.outcomes(shot.model, "validation")
        assert score.outcomes[0] is not None
        assert found.values.tolist() == score.outcomes[0].values.tolist()
        assert found.losses.tolist() == score.outcomes[0].losses.tolist()
        assert len(scorer.outcomes(shot.model, "test").losses) == 120
        assert scorer.outcomes(scorer.loaded.model, "test").losses.max() == 0

    def test_a_metric_of_one_number_has_no_outcomes(self, tmp_path: Path) -> None:
        scorer = scorer_of(load_workload("tests.tiny:scalar"), evaluation(tmp_path))
        assert scorer.score(policy(2), Until(1)).outcomes == (None, None)
        with pytest.raises(CandidateError, match="the metric gives one number for the test split"):
            scorer.outcomes(scorer.one_shot(policy(2)).model, "test")


class TestWork:
    """What a score took is what went through the models."""

    @pytest.mark.parametrize("judge", [Until(0), Until(2), Racing(2, 3.0), Racing(2, 3.0, first=1)])
    def test_every_sample_is_counted(self, scorer: Scorer, judge: Until) -> None:
        for number in range(4):
            scorer.score(policy(number), judge)  # what is made once, is made now
            seen: list[int] = []

            def count(module: nn.Module, inputs: tuple[Tensor, ...], seen: list[int] = seen) -> None:
                if isinstance(module, nn.Sequential):
                    seen.append(len(inputs[0]))

            handle = register_module_forward_pre_hook(count)
            try:
                score = scorer.score(policy(number), judge)
            finally:
                handle.remove()
            assert sum(rung.forwards for rung in score.rungs) == sum(seen)
            trained = [rung.backwards for rung in score.rungs]
            assert trained == [0, 6 * 16, 12 * 16][: len(trained)]


class TestFiles:
    def test_nothing_is_written_that_is_not_kept(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        scorer = scorer_of(loaded, evaluation(tmp_path / "cache"))
        assert scorer.score(policy(1), Until(2, kept=False)).artifact is None
        assert [path.name for path in (tmp_path / "cache").iterdir()] == ["layers"]
        settings = replace(evaluation(tmp_path / "other"), max_bytes=0)
        assert scorer_of(loaded, settings).score(policy(1), Until(2, kept=False)).artifact is None
        assert not (tmp_path / "other").exists()

    def test_a_file_that_is_there_is_left_alone(self, scorer: Scorer, tmp_path: Path) -> None:
        first = scorer.score(policy(1), Until(1))
        assert first.artifact is not None
        path = artifact_path(tmp_path, first.artifact)
        written = path.stat().st_mtime_ns
        assert scorer.score(policy(1), Until(1)).artifact == first.artifact
        assert (path.stat().st_mtime_ns, len(list(path.parent.iterdir()))) == (written, 1)

    def test_a_cache_that_cannot_be_written_may_be_writable_elsewhere(
        self, loaded: LoadedWorkload, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("no folder")
        scorer = scorer_of(loaded, evaluation(tmp_path / "file" / "cache"))
        with pytest.raises(RetryableError, match=r"the cache folder .*/file/cache cannot be written"):
            scorer.score(policy(1), Until(0))

    def test_a_missing_file_is_named(self, scorer: Scorer, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"none\.safetensors: no such file"):
            scorer.score_file(tmp_path / "none.safetensors", "test")
