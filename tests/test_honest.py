"""The end of a search: exact tests of paired outcomes, marks against brute force, and what a study is told."""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sqlalchemy import delete

from compress.files import artifact_path
from objectives.accuracy import Z95, Accuracy, accuracy, interval
from objectives.packed import keep_packed
from objectives.serving import load
from search.front import Front, front, read_front
from search.honest import held_back, mcnemar, more_accurate, within_noise
from search.loop import launch
from search.storage import open_storage
from search.storage.documents import TABLE as DOCUMENTS
from search.stored import load_tested, pick_study
from search.tasks import Result, Task
from tests.searches import STUDY, attrs_of, tiny, url_of
from tests.stores import fresh_url
from tests.studies import CONFIG, MIXED, SPACE, Told, describe, write_study
from tests.tiny import SIZES, clouds

Values = NDArray[np.float32]


@dataclass(frozen=True)
class Member:
    trial: int
    bytes: int
    accuracy: float


def binomial(wins: int, losses: int) -> float:
    """The two-sided p of McNemar's exact test, by its definition, in fractions."""
    pairs, ways, tail = wins + losses, 1, 0
    for k in range(min(wins, losses) + 1):
        tail += ways
        ways = ways * (pairs - k) // (k + 1)
    assert ways == math.comb(pairs, min(wins, losses) + 1)
    return float(min(Fraction(1), 2 * Fraction(tail, 2**pairs)))


class TestMcNemar:
    def test_it_is_the_exact_binomial_test(self) -> None:
        for wins in range(0, 41):
            for losses in range(0, 41):
                assert mcnemar(wins, losses) == pytest.approx(binomial(wins, losses), rel=1e-10)

    @pytest.mark.parametrize(("wins", "losses"), [(1000, 900), (5200, 5000), (9000, 100), (0, 900), (5000, 4999)])
    def test_of_many_samples(self, wins: int, losses: int) -> None:
        assert mcnemar(wins, losses) == pytest.approx(binomial(wins, losses), rel=1e-8, abs=1e-300)
        assert mcnemar(wins, losses) == mcnemar(losses, wins)

    def test_it_is_that_of_scipy(self) -> None:
        stats = pytest.importorskip("scipy.stats")
        for wins, losses in [(8, 1), (6, 0), (5, 0), (30, 14), (7, 7), (0, 0)]:
            expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
            assert mcnemar(wins, losses) == pytest.approx(expected, rel=1e-10)


def pairs(both: int, wins: int, losses: int, neither: int) -> tuple[Values, Values]:
    mine = [1.0] * (both + wins) + [0.0] * (losses + neither)
    theirs = [1.0] * both + [0.0] * wins + [1.0] * losses + [0.0] * neither
    return np.array(mine, np.float32), np.array(theirs, np.float32)


class TestMoreAccurate:
    def test_six_samples_that_only_one_has_right_are_enough_and_five_are_not(self) -> None:
        assert more_accurate(*pairs(200, 6, 0, 10))  # p = 2 / 2^6
        assert not more_accurate(*pairs(200, 5, 0, 10))  # p = 2 / 2^5
        assert not more_accurate(*pairs(200, 0, 6, 10))  # shown to be less accurate
        assert not more_accurate(*pairs(200, 0, 0, 10))

    def test_pairing_sees_what_intervals_that_overlap_hide(self) -> None:
        mine, theirs = pairs(850, 20, 2, 128)
        (low, _), (_, high) = (interval(torch.from_numpy(one).double()) for one in (mine, theirs))
        assert low < high
        assert more_accurate(mine, theirs)

    def test_real_outcomes_are_compared_by_the_interval_of_their_difference(self) -> None:
        draw = np.random.default_rng(0)
        for shift in np.linspace(-0.3, 0.3, 25):
            theirs = draw.normal(size=200).astype(np.float32)
            mine = (theirs + draw.normal(shift, 0.5, size=200)).astype(np.float32)
            differences = mine.astype(np.float64) - theirs
            low = differences.mean() - Z95 * np.std(differences, ddof=1) / math.sqrt(200)
            assert more_accurate(mine, theirs) == (low > 0)
        assert not more_accurate(mine, mine)
        assert more_accurate(theirs + np.float32(0.25), theirs)  # by the same for all samples, exactly

    @pytest.mark.parametrize("whole", [True, False])
    def test_equals_are_seldom_told_apart(self, whole: bool) -> None:
        """Of two that are equally good the first is found better in at most 2.5 %: a tail of a two-sided 95 %."""
        draw, found, runs = np.random.default_rng(1), 0, 4000
        for _ in range(runs):
            both = (draw.random((2, 150)) < 0.9) if whole else draw.normal(size=(2, 150))
            mine, theirs = both.astype(np.float32)
            found += more_accurate(mine, theirs)
        deviation = math.sqrt(0.025 * 0.975 / runs)
        assert found / runs < 0.025 + 4 * deviation
        assert whole or found / runs > 0.025 - 4 * deviation

    def test_other_samples_are_refused(self) -> None:
        with pytest.raises(ValueError, match="given 3 and 2 outcomes, expected those of the same samples"):
            more_accurate(np.zeros(3, np.float32), np.zeros(2, np.float32))


def brute_force(members: list[Member], outcomes: dict[int, Values]) -> dict[int, int | None]:
    """All pairs, by the definition."""
    found: dict[int, int | None] = {}
    for mine in members:
        equals = []
        for other in members:
            if other.bytes < mine.bytes and mine.trial in outcomes and other.trial in outcomes:
                a, b = outcomes[mine.trial], outcomes[other.trial]
                wins, losses = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
                if binomial(wins, losses) >= 0.05 or wins < losses:
                    equals.append((other.bytes, other.trial))
        found[mine.trial] = min(equals)[1] if equals else None
    return found


class TestWithinNoise:
    def test_it_is_brute_force(self) -> None:
        marked = clear = 0
        for seed in range(30):
            draw, chance = random.Random(seed), np.random.default_rng(seed)
            trials = draw.sample(range(100), 8)
            difficulty = chance.random(300)  # samples that are hard for one are hard for all
            members, outcomes = [], {}
            for at, trial in enumerate(trials):
                skill = 0.6 + 0.04 * at + draw.uniform(-0.03, 0.03)
                members.append(Member(trial, 1000 + 100 * at, skill))
                if draw.random() < 0.9:
                    outcomes[trial] = (difficulty + chance.normal(0, 0.05, 300) < skill).astype(np.float32)
            found = within_noise(members, outcomes)
            assert found == brute_force(members, outcomes)
            assert list(found) == trials
            marked += sum(of is not None for of in found.values())
            clear += sum(of is None for of in found.values())
        assert min(marked, clear) > 40

    def test_of_several_it_names_the_smallest(self) -> None:
        same = pairs(90, 0, 0, 10)[0]
        members = [Member(7, 10, 0.5), Member(3, 20, 0.6), Member(5, 30, 0.7)]
        assert within_noise(members, dict.fromkeys((7, 3, 5), same)) == {7: None, 3: 7, 5: 7}
        assert within_noise(members, {3: same, 5: same}) == {7: None, 3: None, 5: 3}
        assert within_noise(members, {}) == {7: None, 3: None, 5: None}
        assert within_noise([], {}) == {}


def outcomes_of(folder: Path, found: Front, entry: str) -> dict[int, torch.Tensor]:
    """What the kept files score on each sample of the test split, loaded as a user loads them."""
    test = clouds(SIZES[3], 3)
    results = {}
    for point in found.points:
        model = load(artifact_path(folder / "cache", point.artifact or ""), workload=f"tests.tiny:{entry}")
        with torch.no_grad():
            out = model(test[0])
        results[point.trial] = -(out[:, 0] - test[1]).square() if entry == "regression" else accuracy(out, test[1])
    return results


def make_earlier(folder: Path, tested: dict[str, Any]) -> None:
    """Have a study keep what is known on the test split as its attributes, as earlier versions did."""
    with closing(open_storage(url_of(folder), create=False)) as storage:
        study_id = storage.get_study_id_from_name(STUDY)
        with storage.engine.begin() as connection:
            connection.execute(delete(DOCUMENTS).where(DOCUMENTS.c.key.in_(tested)))
        storage.set_study_attrs(study_id, tested)


def forget_tested(folder: Path) -> None:
    with closing(open_storage(url_of(folder), create=False)) as storage:
        storage.set_documents(storage.get_study_id_from_name(STUDY), {"test": {}, "within_noise": {}})


class Recorded:
    """A pool that knows what each packed file scores, by trial."""

    def __init__(self, scores: Sequence[Accuracy]) -> None:
        self._scores, self._results = scores, list[Result]()

    def submit(self, task: Task) -> None:
        self._results.append(Result(task.number, test=self._scores[task.number]))

    def collect(self, timeout: float) -> list[Result]:
        results, self._results = self._results, []
        return results

    def withdraw(self) -> int:
        return len(self._results)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("kind", ["sqlite", "mariadb"])
def test_the_scores_of_a_large_front_are_stored_and_read(tmp_path: Path, kind: str) -> None:
    url, members = fresh_url(kind, tmp_path), 1500
    blobs = [str(number).encode() for number in range(members)]
    artifacts = [hashlib.sha256(blob).hexdigest() for blob in blobs]
    told = [
        Told(MIXED, [((number + 1) / members, 20_000 + number)], artifact=artifact)
        for number, artifact in enumerate(artifacts)
    ]
    write_study(url, "large", describe(CONFIG), SPACE, told)
    for artifact, blob in zip(artifacts, blobs, strict=True):
        keep_packed(tmp_path, artifact, blob)
    scores = [Accuracy(number / 3000 + 1e-17, (number / 3001, number / 2999)) for number in range(members)]

    with closing(open_storage(url, create=False)) as storage:
        study = pick_study(storage, "large")
        before = read_front(storage, study)
        new = held_back(before, load_tested(storage, study.id), Recorded(scores), tmp_path, lambda line: None)
        assert new is not None
        storage.set_documents(study.id, new)
        found = read_front(storage, study)

    assert (len(before.points), before.compared) == (members, False)
    assert found.compared
    assert [point.test_accuracy for point in found.points] == [one.value for one in scores]
    assert [point.test_accuracy_ci95 for point in found.points] == [one.ci95 for one in scores]
    assert len(json.dumps(new["test"])) > 2**16


class TestASearch:
    def test_its_members_have_intervals_and_marks_on_the_test_split(self, undisturbed: Path) -> None:
        found, attrs = front(STUDY, url_of(undisturbed)), attrs_of(undisturbed)
        results = outcomes_of(undisturbed, found, "workload")
        for point in found.points:
            assert point.test_accuracy == pytest.approx(float(results[point.trial].mean()))
            assert point.test_accuracy_ci95 == pytest.approx(interval(results[point.trial].double()))
        members = [Member(point.trial, point.bytes, point.accuracy) for point in found.points]
        expected = brute_force(members, {trial: one.numpy() for trial, one in results.items()})
        assert {point.trial: point.within_noise_of for point in found.points} == expected
        assert attrs["within_noise"] == {str(trial): of for trial, of in expected.items()}
        assert found.compared
        assert not any(point.stopped for point in (*found.points, *found.uniform))
        for point in found.uniform:
            assert attrs["test"][str(point.trial)] == {
                "accuracy": point.test_accuracy,
                "ci95": list(point.test_accuracy_ci95 or ()),
            }
        assert found.float.test_accuracy_ci95 is not None
        with closing(open_storage(url_of(undisturbed), create=False)) as storage:  # which MySQL ends at 64 kB
            kept = storage.get_study_user_attrs(storage.get_study_id_from_name(STUDY))
        assert not kept.keys() & {"test", "within_noise"}

    def test_a_front_that_changed_is_compared_anew(self, tmp_path: Path, undisturbed: Path) -> None:
        first = launch(tiny(tmp_path, 8)).front
        assert {point.trial for point in first.points} != {p.trial for p in front(STUDY, url_of(undisturbed)).points}
        assert launch(tiny(tmp_path)).front.compared
        assert attrs_of(tmp_path)["within_noise"] == attrs_of(undisturbed)["within_noise"]

    def test_a_study_of_an_earlier_version_is_brought_up_to_date(self, tmp_path: Path) -> None:
        launch(tiny(tmp_path, 8))
        attrs = attrs_of(tmp_path)
        old = {trial: test["accuracy"] for trial, test in attrs["test"].items()}
        make_earlier(tmp_path, {"test": old, "within_noise": {}})
        read = front(STUDY, url_of(tmp_path))
        assert not read.compared
        assert all(point.test_accuracy == old[str(point.trial)] for point in read.points)
        assert all(point.test_accuracy_ci95 is None for point in read.points)
        launch(tiny(tmp_path, 8))
        now = attrs_of(tmp_path)
        assert (now["test"], now["within_noise"]) == (attrs["test"], attrs["within_noise"])

    def test_a_file_that_is_lost_is_made_again(self, tmp_path: Path) -> None:
        launch(tiny(tmp_path, 8))
        whole = front(STUDY, url_of(tmp_path))
        lost = artifact_path(tmp_path / "cache", whole.points[-1].artifact or "")
        blob = lost.read_bytes()
        lost.unlink()
        forget_tested(tmp_path)
        assert launch(tiny(tmp_path, 8)).front.points == whole.points
        assert lost.read_bytes() == blob

    def test_a_damaged_file_costs_its_member_the_comparison_alone(self, tmp_path: Path) -> None:
        launch(tiny(tmp_path, 8))
        whole = front(STUDY, url_of(tmp_path))
        artifact_path(tmp_path / "cache", whole.points[-1].artifact or "").write_bytes(b"damaged")
        forget_tested(tmp_path)
        found = launch(tiny(tmp_path, 8)).front
        assert found.points[-1].test_accuracy is None
        assert not found.compared
        marks = {point.trial: point.within_noise_of for point in whole.points[:-1]}
        assert {point.trial: point.within_noise_of for point in found.points[:-1]} == marks

    def test_real_outcomes(self, tmp_path: Path) -> None:
        found = launch(tiny(tmp_path, 8, workload="tests.tiny:regression")).front
        results = outcomes_of(tmp_path, found, "regression")
        for at, point in enumerate(found.points):
            assert point.test_accuracy_ci95 == pytest.approx(interval(results[point.trial].double()), rel=1e-4)
            mine = results[point.trial].numpy()
            equals = [p.trial for p in found.points[:at] if not more_accurate(mine, results[p.trial].numpy())]
            assert point.within_noise_of == (equals[0] if equals else None)

    def test_a_metric_of_one_number_marks_nothing(self, tmp_path: Path) -> None:
        found = launch(tiny(tmp_path, 8, workload="tests.tiny:scalar")).front
        assert found.compared
        assert all(point.test_accuracy is not None for point in found.points)
        assert all(point.test_accuracy_ci95 is None and point.within_noise_of is None for point in found.points)
