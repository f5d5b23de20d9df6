"""Students that go on from where they were kept are those that never stopped, whatever happened to the file."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from compress.shared import Shared
from objectives.evaluation import Evaluation
from objectives.judging import FixedJudge
from objectives.kept_students import KeptStudents
from objectives.score import RungScore, Score, Scorer
from objectives.workload import LoadedWorkload, load_workload
from spaces.errors import CandidateError
from spaces.policy import Policy
from tests.scoring import coarse, evaluation, policy, scorer_of
from tests.students import PRUNED, compressed, network

STEPS = (4, 9, 15)
WAYS = {"on each rung": [1, 1, 1], "late": [0, 1, 1], "once": [1, 0, 0], "never": [0, 0, 0]}  # where training helps


@pytest.fixture(scope="module")
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:workload")


@pytest.fixture(scope="module")
def scorer(loaded: LoadedWorkload, tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return scorer_of(loaded, settings(tmp_path_factory.mktemp("cache")))


def settings(cache: Path) -> Evaluation:
    return evaluation(cache, steps=STEPS)


def in_folder(scorer: Scorer, cache: Path, **changed: object) -> Scorer:
    """A scorer without the memory of another one, which keeps its files elsewhere."""
    return Scorer(scorer.loaded, replace(scorer.evaluation, cache=cache, **changed), scorer.teacher)  # type: ignore[arg-type]


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "students" / "kept").glob("*/*.safetensors"))


def worth(score: Score) -> tuple[object, ...]:
    """All of a score but what it cost, and where evidence was not needed again."""
    rungs = [(r.rung, r.accuracy, r.bytes, r.macs, r.loss, r.validation_loss, r.samples) for r in score.rungs]
    return rungs, score.accuracy, score.ci95, score.bytes, score.macs, score.artifact


def spent(score: Score) -> list[tuple[int, int]]:
    return [(rung.forwards, rung.backwards) for rung in score.rungs]


def taught(**changed: float) -> Policy:
    """The same sites, taught otherwise: students of one size."""
    one = coarse()
    assert one.distillation is not None
    return one.model_copy(update={"distillation": one.distillation.model_copy(update=changed)})


def learning(way: str) -> Policy:
    match way:
        case "late":
            return taught(learning_rate=0.3)
        case "once":
            return policy(4)
        case "never":
            return policy(2)
        case _:
            return coarse()


class TestGoingOn:
    @pytest.mark.parametrize(("way", "better"), WAYS.items())
    def test_these_are_better_when_they_say(self, scorer: Scorer, way: str, better: list[int]) -> None:
        losses = [rung.loss for rung in scorer.score(learning(way), FixedJudge()).rungs]
        assert [int(now < before) for before, now in pairwise(losses)] == better

    @pytest.mark.parametrize("way", WAYS)
    @pytest.mark.parametrize(("rung", "file"), [(0, "none"), (1, "there"), (2, "there"), (2, "gone")])
    def test_it_is_as_if_it_had_never_stopped(
        self, scorer: Scorer, way: str, rung: int, file: str, tmp_path: Path
    ) -> None:
        one = learning(way)
        whole = in_folder(scorer, tmp_path / "whole").score(one, FixedJudge())
        first = in_folder(scorer, tmp_path / "cache").score(one, FixedJudge(rung))
        assert worth(first)[0] == worth(whole)[0][: rung + 1]  # type: ignore[index]
        if file == "gone":
            for path in kept(tmp_path / "cache"):
                path.unlink()
        then = in_folder(scorer, tmp_path / "cache").score(one, FixedJudge(), first.rungs)
        assert worth(then) == worth(whole)
        assert spent(then)[: rung + 1] == [(0, 0)] * (rung + 1)
        assert spent(then)[rung + 2 :] == spent(whole)[rung + 2 :]
        artifact = Path("artifacts", f"{then.artifact}.safetensors")
        assert (tmp_path / "cache" / artifact).read_bytes() == (tmp_path / "whole" / artifact).read_bytes()

    def test_rung_by_rung(self, scorer: Scorer, tmp_path: Path) -> None:
        whole = scorer.score(coarse(), FixedJudge())
        score = in_folder(scorer, tmp_path).score(coarse(), FixedJudge(0))
        for rung in (1, 2, 3):
            score = in_folder(scorer, tmp_path).score(coarse(), FixedJudge(rung), score.rungs)
        assert worth(score) == worth(whole)
        assert len(kept(tmp_path)) == 2  # after rungs 1 and 2: before there was no student, and then no further rung

    def test_only_the_further_steps_are_trained(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        calls = 0

        def loss(out: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            nonlocal calls
            calls += 1
            return functional.cross_entropy(out, targets)

        counting = scorer_of(replace(loaded, workload=replace(loaded.workload, loss=loss)), settings(tmp_path))

        def steps(start: Sequence[RungScore], last: int) -> tuple[int, Score]:
            before = calls
            score = counting.score(coarse(), FixedJudge(last), start)
            return calls - before - 1, score  # once to tell losses apart

        first, begun = steps((), 2)
        then, ended = steps(begun.rungs, 3)
        for path in kept(tmp_path):
            path.unlink()
        again, also = steps(begun.rungs, 3)
        assert (first, then, again) == (9, 6, 15)
        assert spent(also) == spent(ended)
        assert ended.rungs[-1].backwards == 6 * 32

    def test_what_is_never_kept_costs_what_it_takes(self, scorer: Scorer, tmp_path: Path) -> None:
        """Its best model is that of rung 1."""
        first = in_folder(scorer, tmp_path).score(learning("once"), FixedJudge(2))
        assert not kept(tmp_path)
        then = in_folder(scorer, tmp_path).score(learning("once"), FixedJudge(), first.rungs)
        assert then.rungs[-1].backwards == 15 * 16

    def test_the_next_rung_is_taken_unasked_and_a_further_one_is_judged(self, scorer: Scorer) -> None:
        first = scorer.score(coarse(), FixedJudge(0))
        assert scorer.score(coarse(), FixedJudge(0), first.rungs).rung == 1
        assert scorer.score(coarse(), FixedJudge(2), first.rungs).rung == 2

    def test_there_must_be_a_next_rung(self, scorer: Scorer) -> None:
        whole = scorer.score(coarse(), FixedJudge())
        with pytest.raises(CandidateError, match="scores of 4 rungs, and there is no next one"):
            scorer.score(coarse(), FixedJudge(), whole.rungs)

    def test_a_policy_without_settings_cannot_go_on(self, scorer: Scorer) -> None:
        first = scorer.score(policy(1, distilled=False), FixedJudge())
        with pytest.raises(CandidateError, match="no settings of distillation"):
            scorer.score(policy(1, distilled=False), FixedJudge(), first.rungs)


class TestFiles:
    def test_nothing_is_kept_of_who_is_through(self, scorer: Scorer, tmp_path: Path) -> None:
        for last in (0, 3):
            in_folder(scorer, tmp_path).score(coarse(), FixedJudge(last))
        assert not kept(tmp_path)

    @pytest.mark.parametrize("damage", ["bit", "half", "empty", "text", "other policy"])
    def test_a_damaged_file_is_none(self, scorer: Scorer, damage: str, tmp_path: Path) -> None:
        whole = scorer.score(coarse(), FixedJudge())
        first = in_folder(scorer, tmp_path).score(coarse(), FixedJudge(2))
        (path,) = kept(tmp_path)
        blob = path.read_bytes()
        if damage == "other policy":
            in_folder(scorer, tmp_path / "other").score(policy(2), FixedJudge(2))
            path.write_bytes(kept(tmp_path / "other")[0].read_bytes())
        else:
            flipped = blob[:-40] + bytes([blob[-40] ^ 4]) + blob[-39:]
            path.write_bytes({"bit": flipped, "half": blob[: len(blob) // 2], "empty": b"", "text": b"hello"}[damage])
        assert worth(in_folder(scorer, tmp_path).score(coarse(), FixedJudge(), first.rungs)) == worth(whole)

    @pytest.mark.parametrize("change", [{"seed": 1}, {"chunk": 16}, {"steps": (5, 9, 15)}])
    def test_other_settings_have_students_of_their_own(
        self, scorer: Scorer, change: dict[str, object], tmp_path: Path
    ) -> None:
        in_folder(scorer, tmp_path).score(coarse(), FixedJudge(1))
        in_folder(scorer, tmp_path, **change).score(coarse(), FixedJudge(1))
        assert len(kept(tmp_path)) == 2

    def test_they_stay_below_the_bound_and_the_oldest_go(self, scorer: Scorer, tmp_path: Path) -> None:
        in_folder(scorer, tmp_path / "one").score(coarse(), FixedJudge(1))
        bound = 3.5 * kept(tmp_path / "one")[0].stat().st_size
        few, made = in_folder(scorer, tmp_path / "few", max_bytes=int(bound)), []
        for number in range(6):
            before = kept(tmp_path / "few")
            few.score(taught(temperature=1.0 + number), FixedJudge(1))
            (new,) = set(kept(tmp_path / "few")) - set(before)
            os.utime(new, (1000.0 + number, 1000.0 + number))
            made.append(new)
            assert kept(tmp_path / "few") == sorted(made[-3:])

    def test_a_bound_of_zero_keeps_none(self, scorer: Scorer, tmp_path: Path) -> None:
        whole, none = scorer.score(coarse(), FixedJudge()), in_folder(scorer, tmp_path, max_bytes=0)
        first = none.score(coarse(), FixedJudge(1))
        assert not kept(tmp_path)
        assert worth(none.score(coarse(), FixedJudge(), first.rungs)) == worth(whole)

    def test_a_folder_that_cannot_be_written_is_no_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        shelf, student = KeptStudents(tmp_path / "file", 10**9), compressed(network(), PRUNED).student()
        shelf.put("start", (3,), student, torch.Generator(), taken=True)
        assert shelf.restore("start", (3,), student, torch.Generator()) is None

    def test_another_node_restores_what_was_shared(self, tmp_path: Path) -> None:
        shared = Shared(str(tmp_path / "shared"))
        one, other = (KeptStudents(tmp_path / node, 10**9, shared) for node in "ab")
        student = compressed(network(), PRUNED).student()
        one.put("start", (3,), student, torch.Generator().manual_seed(5), taken=True)
        assert shared.flush(10)
        generator = torch.Generator()
        assert other.restore("start", (3,), student, generator) is True
        assert torch.equal(generator.get_state(), torch.Generator().manual_seed(5).get_state())
        assert kept(tmp_path / "b")[0].read_bytes() == kept(tmp_path / "a")[0].read_bytes()
