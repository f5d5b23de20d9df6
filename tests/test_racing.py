"""Racing: how often it stops what would have won, and what it saves, on simulated and on real outcomes."""

import copy
import dataclasses
import itertools
import math
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from objectives.racing import Outcomes, Race, Verdict
from objectives.workloads import digits
from objectives.workloads.resnet import trained

KINDS = ("plain", "hard", "classes", "soft")


def response(generator: np.random.Generator, models: int, samples: int, kind: str) -> list[Outcomes]:
    """Outcomes of an item-response model: ability less difficulty, a guess floor, and what each model does on its own.

    `hard` has accuracies of about 0.7, the others of 0.85 to 0.99. With `classes` half of the models fail on one of ten
    classes; with `soft` half of them have losses that are larger or smaller than their outcomes say.
    """
    classes = generator.integers(0, 10, samples)
    difficulty, slope = generator.normal(0, 1.5, samples), generator.lognormal(0, 0.2, samples)
    hopeless = generator.random(samples) < 0.02  # nobody gets them right but by guessing
    middle = 1.0 if kind == "hard" else generator.uniform(2.0, 5.0)
    abilities = generator.normal(middle, generator.choice([0.1, 0.3, 0.8]), models)
    made = []
    for ability in abilities:
        z = ability - slope * difficulty + generator.normal(0, generator.uniform(0.3, 1.2), samples)
        odd = generator.random() < 0.5
        if kind == "classes" and odd:
            z -= (classes == generator.integers(10)) * generator.uniform(1, 8)
        p = np.where(hopeless, 0.1, 0.1 + 0.9 / (1 + np.exp(-2 * z)))
        losses = np.exp(-z * generator.uniform(0.6, 1.1) + generator.normal(0, 0.7, samples))
        if kind == "soft" and odd:
            losses *= np.exp(generator.normal(0, 1.5))
        values = generator.random(samples) < p
        made.append(Outcomes(values.astype(np.float32), losses.astype(np.float32)))
    return made


def accuracy(outcomes: Outcomes) -> float:
    return float(outcomes.values.astype(np.float64).mean())


def first(outcomes: Outcomes, m: int) -> Outcomes:
    return Outcomes(outcomes.values[:m], outcomes.losses[:m])


def used(race: Race, candidate: Outcomes, chunk: int = 100) -> int:
    """How many samples are seen before the candidate is stopped, all of them where it never is."""
    samples = candidate.values.size
    looks = range(chunk, samples, chunk)
    return next((m for m in looks if race.judge(first(candidate, m), samples).hopeless), samples)


def binary(right: int, samples: int) -> Outcomes:
    """That many right of all samples, in an order of no meaning."""
    values = np.random.default_rng(right).permutation(samples) < right
    return Outcomes(values.astype(np.float32), np.where(values, 0.1, 2.0).astype(np.float32))


def simulated(confidence: float, draws: int, samples: int) -> Iterator[tuple[int, bool]]:
    """(samples used, whether it would have won) of candidates; the threshold is a reference's accuracy, any of them."""
    for seed in range(draws):
        generator = np.random.default_rng(seed)
        made = response(generator, 20, samples, KINDS[seed % len(KINDS)])
        references = tuple(made[: int(generator.integers(0, 7))])
        threshold = max(accuracy(one) for one in made[:2])
        race = Race(threshold, references, confidence)
        for candidate in made[8:]:
            yield used(race, candidate), accuracy(candidate) > threshold


def check_calibration(done: list[tuple[int, bool]], samples: int, confidence: float) -> None:
    stopped = [won for seen, won in done if seen < samples]
    spent = sum(seen for seen, _ in done) / (samples * len(done))
    lost = [seen / samples for seen, won in done if not won]
    print(
        f"N {samples} confidence {confidence}: {len(stopped)} of {len(done)} stopped, {np.mean(stopped):.4f} would "
        f"have won; {spent:.3f} of the samples used, {np.mean(lost):.3f} of those that lost"
    )
    assert len(stopped) >= 1000
    assert np.mean(stopped) <= 1 - confidence


@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_of_what_is_stopped_no_more_would_have_won_than_the_confidence_allows(confidence: float) -> None:
    check_calibration(list(simulated(confidence, 166, 400)), 400, confidence)


@pytest.mark.slow
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_so_it_is_with_many_looks(confidence: float) -> None:
    done = list(simulated(confidence, 140, 1500))
    check_calibration(done, 1500, confidence)
    assert np.mean([seen / 1500 for seen, won in done if not won]) < 0.4


@pytest.mark.slow
def test_of_twenty_thousand_samples_what_loses_uses_a_tenth() -> None:
    done = list(simulated(0.95, 16, 20_000))
    stopped = [won for seen, won in done if seen < 20_000]
    assert np.mean(stopped) <= 0.05
    assert np.mean([seen / 20_000 for seen, won in done if not won]) < 0.12


def test_what_is_clearly_worse_stops_at_once_and_what_is_better_never() -> None:
    samples, references = 1500, tuple(binary(right, 1500) for right in (1380, 1390, 1400))
    race = Race(1400 / samples, references, 0.95)
    assert all(used(race, binary(right, samples)) == 100 for right in (300, 600, 900, 1050))
    assert all(used(race, binary(right, samples)) == samples for right in (1430, 1460, 1490))


def digit_outcomes(count: int) -> list[Outcomes]:
    """Of the digits' model with random weights of each layer cut and rounded, on validation, in a random order."""
    torch.manual_seed(0)
    inputs, targets = digits.splits().validation
    order = torch.randperm(len(targets))
    inputs, targets = inputs[order], targets[order]
    whole = trained(digits.WEIGHTS).eval()
    float_logs = whole(inputs).log_softmax(1).detach()
    made = []
    for level in torch.linspace(0, 1, count).tolist():
        model = copy.deepcopy(whole)
        for weight in (one for one in model.parameters() if one.ndim > 1):
            rows = weight.detach().flatten(1)
            ratio, top = 0.5 * level * float(torch.rand(())), [31, 7, 3][int(torch.randint(3, ()))]
            rows = rows * (rows.abs() > rows.abs().flatten().quantile(ratio))
            scale = rows.abs().amax(1, keepdim=True).clamp(min=1e-8) / top
            weight.data = ((rows / scale).round() * scale).view_as(weight)
        with torch.no_grad():
            outputs = model(inputs)
        values = (outputs.argmax(1) == targets).float()
        losses = (float_logs.exp() * (float_logs - outputs.log_softmax(1))).sum(1)
        made.append(Outcomes(values.numpy(), losses.numpy()))
    return made


def test_on_real_outcomes_it_saves_and_is_right() -> None:
    made, generator = digit_outcomes(30), np.random.default_rng(0)
    done = []
    for _ in range(300):
        order = generator.permutation(400)
        one, *others = (Outcomes(made[k].values[order], made[k].losses[order]) for k in generator.permutation(30))
        beaten = accuracy(others[0])
        references = tuple(sorted(others, key=lambda other: abs(accuracy(other) - beaten))[:6])
        done.append((used(Race(beaten, references, 0.95), one), accuracy(one) > beaten))
    stopped = [won for seen, won in done if seen < 400]
    print(f"{len(stopped)} of {len(done)} stopped, {np.mean(stopped):.4f} would have won")
    assert len(stopped) > 100
    assert np.mean(stopped) <= 0.05
    assert np.mean([seen / 400 for seen, won in done if not won]) < 0.6


def test_of_all_samples_the_verdict_is_exact() -> None:
    for right in range(355, 366):
        for confidence in (0.5, 0.95, 1.0):
            verdict = Race(0.9, (binary(350, 400),), confidence).judge(binary(right, 400), 400)
            assert verdict == Verdict(right / 400, right / 400, right / 400, right <= 360)


@pytest.mark.parametrize("threshold", [0.9, float(np.float32(0.9)), 361 / 400, 360.5 / 400])
def test_a_tie_is_not_better_and_what_is_certain_needs_no_confidence(threshold: float) -> None:
    needed = 362 if threshold == 361 / 400 else 361
    race = Race(threshold, (), 1.0)
    for rest in (1, 7, 50):
        for right, hopeless in ((needed - rest - 1, True), (needed - rest, False), (needed, False)):
            values = (np.arange(400 - rest) < right).astype(np.float32)
            assert race.judge(Outcomes(values, 1 - values), 400).hopeless is hopeless


def test_more_confidence_stops_less_and_widens() -> None:
    confidences = (0.5, 0.8, 0.9, 0.95, 0.99, 0.999, 1.0)
    for seed, kind in enumerate(KINDS):
        candidate, *references = response(np.random.default_rng(seed), 7, 600, kind)
        for known in (tuple(references), ()):
            for threshold in (accuracy(candidate) - 0.02, accuracy(candidate), accuracy(candidate) + 0.04):
                verdicts = [Race(threshold, known, one).judge(first(candidate, 200), 600) for one in confidences]
                stops = [verdict.hopeless for verdict in verdicts]
                assert stops == sorted(stops, reverse=True)
                assert all(a.low >= b.low and a.high <= b.high for a, b in itertools.pairwise(verdicts))


def test_intervals_hold_what_comes_out() -> None:
    inside = []
    for seed in range(60):
        made = response(np.random.default_rng(seed), 10, 500, KINDS[seed % len(KINDS)])
        for known in (tuple(made[:5]), ()):
            verdicts = [Race(0.5, known, 0.9).judge(first(one, 150), 500) for one in made[5:]]
            inside += [v.low <= accuracy(one) <= v.high for v, one in zip(verdicts, made[5:], strict=True)]
            assert all(0 <= v.low <= v.accuracy <= v.high <= 1 for v in verdicts)
    assert 0.87 < np.mean(inside) < 0.97


def test_references_narrow_the_interval() -> None:
    widths = []
    for seed in range(20):
        candidate, *references = response(np.random.default_rng(seed), 7, 1500, "plain")
        pair = [Race(0.9, known, 0.95).judge(first(candidate, 300), 1500) for known in (tuple(references), ())]
        widths.append((pair[0].high - pair[0].low) / (pair[1].high - pair[1].low))
    assert np.mean(widths) < 0.85


@pytest.mark.parametrize(("right", "seen"), [(100, 100), (97, 100), (180, 200), (60, 100), (10, 100), (0, 100)])
def test_without_references_it_is_the_beta_binomial(right: int, seen: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    rest = 500 - seen
    exact = stats.betabinom(rest, right + 0.5, seen - right + 0.5)
    values = (np.arange(seen) < right).astype(np.float32)
    for share in np.linspace(0.05, 0.95, 19):
        threshold = (right + int(exact.ppf(share))) / 500
        chance = float(exact.sf(int(exact.ppf(share))))
        for confidence in (0.5, 0.7, 0.9, 0.95):
            hopeless = Race(threshold, (), confidence).judge(Outcomes(values, 1 - values), 500).hopeless
            if abs(chance - (1 - confidence)) > 0.04:  # it is approximated
                assert hopeless is (chance < 1 - confidence)


def shares(generator: np.random.Generator, models: int, samples: int) -> list[Outcomes]:
    """Outcomes such as intersection over union: between 0 and 1, and often at an end."""
    difficulty = generator.normal(0, 0.2, samples)
    made = []
    for level in generator.normal(0.8, 0.03, models):
        values = np.clip(level - difficulty + generator.normal(0, 0.1, samples), 0, 1).astype(np.float32)
        made.append(Outcomes(values, 1 - values))
    return made


@pytest.mark.parametrize("scale", [1.0, -250.0])
def test_outcomes_of_any_value_are_judged(scale: float) -> None:
    done = []
    for seed in range(120):
        made = [Outcomes(one.values * scale, one.losses) for one in shares(np.random.default_rng(seed), 18, 500)]
        race = Race(max(map(accuracy, made[:2])), tuple(made[: seed % 6]), 0.95)
        done += [(used(race, one), accuracy(one) > race.threshold) for one in made[6:]]
    lost = [seen for seen, won in done if not won]
    stopped = [won for seen, won in done if seen < 500]
    assert len(stopped) > 700
    assert np.mean(stopped) <= 0.05
    assert np.mean(lost) < 300


def test_the_fallback_is_the_t_interval_of_a_finite_population() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [0.71, 0.74, 0.69, 0.73, 0.70, 0.72]
    chunks = [(value, 50) for value in values]
    for count in range(3, 7):
        some = values[:count]
        sd = math.sqrt(np.var(some, ddof=1) / count * (1 - count * 50 / 1000))
        low, high = stats.t.interval(0.95, count - 2, np.mean(some), sd)
        verdict = Race(0.9, (), 0.95).judge_chunks(chunks[:count], 1000)
        assert verdict.accuracy == pytest.approx(np.mean(some))
        assert (verdict.low, verdict.high) == pytest.approx((low, high), rel=0.01 if count > 3 else 0.3)
        assert verdict.hopeless
        assert not Race(0.72, (), 0.95).judge_chunks(chunks[:count], 1000).hopeless


def test_the_fallback_is_never_hopeless_under_three_chunks_and_exact_at_the_end() -> None:
    race = Race(0.9, (), 0.5)
    assert not race.judge_chunks([], 400).hopeless
    assert not race.judge_chunks([(0.0, 100), (0.1, 100)], 400).hopeless
    assert not race.judge_chunks([(0.5, 100)] * 3, 400).hopeless  # nothing was seen to vary
    chunks = [(0.8, 100), (1.0, 50), (1.0, 50)]
    assert race.judge_chunks(chunks, 200) == Verdict(0.9, 0.9, 0.9, True)
    assert not race.judge_chunks([(0.82, 100), *chunks[1:]], 200).hopeless


def test_the_fallback_stops_no_more_than_the_confidence_allows() -> None:
    stopped, generator = [], np.random.default_rng(0)
    for _ in range(2500):
        values = generator.normal(generator.normal(0, 0.4), 1, 20)
        looks = [Race(0.0, (), 0.95).judge_chunks([(v, 100) for v in values[:m]], 2000) for m in range(1, 20)]
        if any(look.hopeless for look in looks):
            stopped.append(float(values.mean()) > 0)
    assert len(stopped) > 1000
    assert np.mean(stopped) <= 0.05


def test_odd_references_and_losses_are_no_obstacle() -> None:
    candidate, one, other = response(np.random.default_rng(1), 3, 400, "plain")
    zero, diverged = np.zeros(400, np.float32), np.full(400, np.inf, np.float32)
    diverged[::2] = np.nan
    always, never = Outcomes(zero + 1, zero), Outcomes(zero, diverged)
    sets = [(one,), (one, one), (one,) * 6, (always,), (never,), (always, never), (one, never), (always,) * 6]
    for references in sets:
        for seen in (candidate, always, never, Outcomes(candidate.values, diverged), Outcomes(other.values, zero)):
            for m in (0, 1, 2, 100, 399):
                verdict = Race(accuracy(one), references, 0.95).judge(first(seen, m), 400)
                assert not math.isnan(verdict.accuracy)
                assert verdict.low <= verdict.accuracy <= verdict.high
    for references in sets[:3]:
        race = Race(accuracy(one), references, 0.95)
        assert used(race, never) == 100
        assert used(race, always) == 400
    values = Outcomes(candidate.values * 0.5, candidate.losses)  # not 0 or 1
    for references in [*sets, ()]:
        for m in (0, 1, 2, 8, 9, 399):
            assert not math.isnan(Race(0.4, references, 0.95).judge(first(values, m), 400).accuracy)
    constant = Outcomes(zero + 0.5, zero)
    assert not Race(0.6, (), 0.95).judge(first(constant, 100), 400).hopeless


def test_a_race_goes_to_another_process_as_it_is() -> None:
    candidate, *references = response(np.random.default_rng(2), 7, 400, "plain")
    race = Race(0.95, tuple(references), 0.95)
    before = race.judge(first(candidate, 100), 400)
    assert pickle.loads(pickle.dumps(race)).judge(first(candidate, 100), 400) == before
    assert dataclasses.replace(race).judge(first(candidate, 100), 400) == before


def test_lengths_that_do_not_fit_are_refused() -> None:
    one, other = binary(300, 400), binary(300, 399)
    with pytest.raises(ValueError, match="m at most 399"):
        Race(0.9, (), 0.95).judge(one, 399)
    with pytest.raises(ValueError, match="other than 400"):
        Race(0.9, (one, other), 0.95).judge(first(one, 100), 400)
    with pytest.raises(ValueError, match="losses"):
        Race(0.9, (), 0.95).judge(Outcomes(one.values, one.losses[:3]), 400)
