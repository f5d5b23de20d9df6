"""The search benchmark on the tiny workload: recorded outcomes, replayed searches, and what is measured of fronts."""

import itertools
import math
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search import main
from benchmarks.searching.measures import Point, front_of, prefix, saved_bytes, within
from benchmarks.searching.racing import on_front, run_race
from benchmarks.searching.recorded import Recorded, recorded
from benchmarks.searching.runs import Rules, Runs, Step, play
from benchmarks.searching.samplers import along, base_of, searcher_of
from benchmarks.searching.setting import Setting, SiteLevels, set_up
from benchmarks.searching.spdy import solve, turns
from objectives.judging import FixedJudge
from objectives.racing import Outcomes, Race, typical_loss

CONFIG = """
study: tiny
workload: tests.tiny:workload
space: {bits: [2, 4, 6], ratios: [0.0, 0.6, 0.9]}
sampler: {uniform: 3, predicted: 6}
chunk: 32
"""
RULES = Rules(window=4, confidence=0.95)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    (folder / "tiny.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def setting(folder: Path) -> Setting:
    return set_up(str(folder / "tiny.yaml"), folder)


@pytest.fixture(scope="module")
def table(setting: Setting, folder: Path) -> Iterator[Recorded]:
    with recorded(folder / "outcomes.sqlite", setting.prepared.scorer) as made:
        yield made


def step(bytes: int, accuracy: float | None, *, stopped: bool = False, forwards: float = 10.0) -> Step:
    return Step("", "sampler", bytes, accuracy, accuracy, 10, stopped, False, forwards, 1.0, 0.0, 0.0)


def test_it_answers_what_the_scorer_does_and_evaluates_once(setting: Setting, table: Recorded, folder: Path) -> None:
    policy = along(setting, 3)[0]
    score = setting.prepared.scorer.score(policy, FixedJudge(last=0, kept=False))
    record = table.evaluate(policy, ["validation"])
    assert (record.accuracy("validation"), record.bytes, record.macs) == (score.accuracy, score.bytes, score.macs)
    assert record.loss == score.rungs[0].loss
    assert record.forwards + setting.samples == score.rungs[0].forwards
    assert record.divergence("validation") == pytest.approx(score.rungs[0].validation_loss, rel=1e-2)  # kept as float16
    with recorded(folder / "outcomes.sqlite", setting.prepared.scorer) as another:
        again = another.evaluate(policy, ["validation"])
        assert again.bytes == record.bytes
        assert another.evaluated == 0
        more = another.evaluate(policy, ["validation", "test"])  # what is missing is added
        assert set(more.outcomes) == {"validation", "test"}
        assert another.evaluated == 0
        assert another.policy(policy.digest) == policy


@pytest.mark.parametrize(
    "name", ["random", "nsga2+", "front", "front+racing", "uniform", "programme", "spdy", "spdy+", "evopress"]
)
def test_a_run_that_was_killed_goes_on_as_if_it_had_not_been(
    name: str, setting: Setting, table: Recorded, tmp_path: Path
) -> None:
    def steps(file: str, *counts: int) -> list[tuple[object, ...]]:
        with closing(Runs(tmp_path / file)) as runs:
            for count in counts:
                found = play(setting, table, runs, name, 1, count, RULES)
        return [(one.digest, one.accuracy, one.forwards, one.evaluations, one.stopped) for one in found]

    assert steps("killed", 5, 9, 16) == steps("whole", 16)
    assert len(steps("killed", 9)) == len(steps("other", 9))


def test_an_evaluation_takes_its_correction_and_the_samples(setting: Setting, table: Recorded, tmp_path: Path) -> None:
    with closing(Runs(tmp_path / "runs")) as runs:
        steps = play(setting, table, runs, "uniform", 0, 100, RULES)
        assert len(steps) == len(setting.prepared.space.uniform())  # it has no more
        assert play(setting, table, runs, "uniform", 0, 200, RULES) == steps
        repeated = play(setting, table, runs, "programme", 0, 20, RULES)
    for one in [*steps, *repeated]:
        record = table.evaluate(table.policy(one.digest), ["validation", "test"])
        assert one.forwards == record.forwards + setting.samples
        assert (one.accuracy, one.test) == (record.accuracy("validation"), record.accuracy("test"))


def test_racing_takes_fewer_samples_and_stops_nobody_on_the_front(
    setting: Setting, table: Recorded, tmp_path: Path
) -> None:
    with closing(Runs(tmp_path / "runs")) as runs:
        full = play(setting, table, runs, "random", 0, 60, RULES)
        raced = play(setting, table, runs, "random+racing", 0, 60, RULES)
    assert [one.digest for one in full] == [one.digest for one in raced]  # random learns nothing
    stopped = [one for one in raced if one.stopped]
    assert stopped
    assert all(one.samples < setting.samples for one in stopped)
    assert sum(one.forwards for one in raced) < sum(one.forwards for one in full)
    members = {(one.bytes, one.accuracy) for one in front_of(full).validation}
    lost = members - {(one.bytes, one.accuracy) for one in front_of(raced).validation}
    assert len(lost) <= sum(one.wrongly for one in stopped)


def test_a_race_is_judged_chunk_by_chunk_and_the_estimate_is_below_the_threshold() -> None:
    draw = np.random.default_rng(0)
    losses = draw.random(500, dtype=np.float32)
    bad, good = (Outcomes((draw.random(500) < share).astype(np.float32), losses) for share in (0.5, 0.95))
    race = Race(0.9, (), 0.95)
    finish = run_race(bad, race, 50)
    assert finish.stopped
    assert finish.samples in range(50, 500, 50)
    assert finish.accuracy < race.threshold
    assert finish.loss == typical_loss(losses[: finish.samples])
    for full in (run_race(good, race, 50), run_race(bad, None, 50)):
        assert (full.stopped, full.samples) == (False, 500)
    assert run_race(good, race, 50).accuracy == pytest.approx(float(good.values.mean()))


def test_on_front() -> None:
    others = [(0.9, 100), (0.8, 50)]
    assert on_front(0.85, 60, others)
    assert on_front(0.9, 99, others)
    assert not on_front(0.9, 100, others)
    assert not on_front(0.7, 60, others)


def levels(sites: int, seed: int) -> list[SiteLevels]:
    draw = np.random.default_rng(seed)
    found = []
    for i in range(sites):
        count = int(draw.integers(2, 5))
        sizes = np.sort(draw.choice(np.arange(10, 400), count, replace=False)).astype(np.int64)
        found.append(SiteLevels(str(i), (), sizes, np.sort(draw.random(count))[::-1]))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_spdy_solves_its_programme(seed: int) -> None:
    own = levels(4, seed)
    coefficients = np.random.default_rng(seed).uniform(0.01, 1, 4)
    low, high = (sum(int(one.bytes[at]) for one in own) for at in (0, -1))
    for share in (0.1, 0.5, 0.9):
        budget = low + share * (high - low)

        def loss(chosen: tuple[int, ...]) -> float:
            return math.fsum(c * float(one.losses[i]) for c, one, i in zip(coefficients, own, chosen, strict=True))

        every = itertools.product(*(range(len(one.bytes)) for one in own))
        allowed = [c for c in every if sum(int(o.bytes[i]) for o, i in zip(own, c, strict=True)) <= budget * 0.999]
        found = solve(own, coefficients, budget)
        assert sum(int(one.bytes[i]) for one, i in zip(own, found, strict=True)) <= budget
        assert loss(found) <= min(map(loss, allowed)) + 1e-12  # buckets round sizes up by at most 4 in 10,000
    assert solve(own, coefficients, 1.0) == (0, 0, 0, 0)


def test_turns_are_spread() -> None:
    assert turns(8) == [0, 4, 2, 6, 1, 5, 3, 7]


@pytest.mark.parametrize("name", ["spdy", "evopress"])
def test_budgets_hold_and_later_losses_are_lower(name: str, setting: Setting, table: Recorded) -> None:
    searcher = searcher_of(name, setting, table, 0)
    losses: dict[int, list[float]] = {}
    budgets = [
        one.budget if name == "evopress" else one.bytes
        for one in getattr(searcher, {"spdy": "_budgets"}.get(name, "_parents"))
    ]
    for number in range(48):
        offer = searcher.propose(number)
        assert offer is not None
        assert offer.spent is not None
        record = table.evaluate(offer.policy, [])
        assert record.bytes <= max(budgets) + setting.rest
        if name == "evopress":
            losses.setdefault(number % 8, []).append(record.loss)
            assert record.bytes <= budgets[turns(8)[number % 8]] + setting.rest
    for own in losses.values():
        assert own == sorted(own, reverse=True)  # elitist


def test_evopress_counts_the_samples_of_its_stages(setting: Setting, table: Recorded) -> None:
    searcher = searcher_of("evopress", setting, table, 0)
    first, *_, later = (searcher.propose(number) for number in range(12))
    assert first is not None
    assert later is not None
    full = table.evaluate(first.policy, []).forwards
    # 16 candidates on a quarter of the data and one on all of it; 16 on a sixteenth, 4 on a quarter, 1 on all
    assert first.spent is not None
    assert first.spent <= 5 * full
    assert later.spent is not None
    assert later.spent <= 3.1 * full


def test_only_what_was_validated_in_full_is_on_a_front() -> None:
    steps = [step(100, 0.9), step(50, None), step(60, 0.95, stopped=True), step(80, 0.8)]
    assert [one.bytes for one in front_of(steps).validation] == [80, 100]
    assert len(prefix(steps, 2)) == 2
    assert len(within(steps, 39.0)) == 3


def points(*pairs: tuple[int, float]) -> list[Point]:
    return [Point(i, size, accuracy) for i, (size, accuracy) in enumerate(pairs)]


def test_saved_bytes_is_the_mean_log_ratio_of_sizes_at_equal_accuracy() -> None:
    ours, theirs = points((50, 0.91), (100, 0.95)), points((100, 0.91), (200, 0.95))
    assert saved_bytes(ours, theirs, 0.9, 1.0) == pytest.approx(math.log(2))
    assert saved_bytes(theirs, ours, 0.9, 1.0) == pytest.approx(-math.log(2))
    # up to 0.91 as above; from there to 0.93, the highest that both reach, 100 against 150
    theirs = points((100, 0.91), (150, 0.93))
    assert saved_bytes(ours, theirs, 0.9, 1.0) == pytest.approx((math.log(2) * 0.01 + math.log(1.5) * 0.02) / 0.03)
    assert saved_bytes(ours, theirs, 0.93, 1.0) is None
    assert saved_bytes(ours, [], 0.9, 1.0) is None


def test_saved_bytes_against_a_fine_grid() -> None:
    draw = np.random.default_rng(1)
    one, other = (
        points(*((int(b), float(a)) for b, a in zip(draw.integers(50, 500, 30), draw.random(30), strict=True)))
        for _ in "ab"
    )
    top = min(max(p.accuracy for p in own) for own in (one, other))
    grid = 0.5 + (np.arange(20_000) + 0.5) / 20_000 * (top - 0.5)
    logs = [
        math.log(min(p.bytes for p in other if p.accuracy >= a) / min(p.bytes for p in one if p.accuracy >= a))
        for a in grid
    ]
    assert saved_bytes(one, other, 0.5, 1.0) == pytest.approx(float(np.mean(logs)), abs=1e-3)


def test_names() -> None:
    assert base_of("front") == ("front", True, False)
    assert base_of("front+racing") == ("front", True, True)
    assert base_of("tpe++racing") == ("tpe", True, True)
    assert base_of("tpe+") == ("tpe", True, False)
    for wrong in ("annealing", "uniform+", ""):
        with pytest.raises(ValueError, match="--samplers: given"):
            base_of(wrong)


def test_shuffled_sensitivities_keep_bytes_and_change_the_prediction(folder: Path, setting: Setting) -> None:
    wrong = set_up(str(folder / "tiny.yaml"), folder, shuffled=True)
    assert wrong.key == setting.key  # the same outcomes
    for one, other in zip(wrong.prepared.tables[0].sites, setting.prepared.tables[0].sites, strict=True):
        assert (one.bytes == other.bytes).all()
    assert wrong.first_digest != setting.first_digest


def test_many_samples_are_train_and_validation_together(folder: Path, setting: Setting) -> None:
    many = set_up(str(folder / "tiny.yaml"), folder, "train")
    splits = setting.prepared.loaded.splits
    assert many.samples == splits["train"].samples + splits["validation"].samples
    assert many.key == setting.key
    accuracy = many.prepared.scorer.outcomes(many.prepared.loaded.model, "train").values.mean()
    assert many.box5.best == pytest.approx(float(accuracy))


def test_it_prints_writes_and_draws(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "tiny.json"
    names = "front,front+racing,nsga2+,spdy"
    arguments = ["--workload", str(folder / "tiny.yaml"), "--samplers", names, "--seeds", "2", "--evaluations", "12"]
    main([*arguments, "--records", str(folder), "--json", str(path)])
    assert "nsga2+" in capsys.readouterr().out
    assert path.is_file()
    assert path.with_suffix(".html").stat().st_size > 100_000
    assert path.with_suffix(".png").stat().st_size > 10_000
