"""What a metric may return, and the interval around it."""

import numpy as np
import pytest
import torch

from objectives.accuracy import Z95, accuracy, interval, summarize
from spaces.errors import CandidateError


def test_outcomes_are_one_where_the_largest_output_is_the_targets() -> None:
    outputs = torch.tensor([[0.1, 0.9], [2.0, 1.0], [0.0, 0.0]])
    assert accuracy(outputs, torch.tensor([1, 1, 0])).tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("right", "n"), [(0, 1), (0, 50), (1, 2), (7, 10), (493, 500), (500, 500)])
def test_the_interval_of_a_share_is_that_of_wilson(right: int, n: int) -> None:
    """It is solved for here: its ends are the shares p at which |share - p| is Z95 standard errors of p."""
    low, high = interval(torch.tensor([1.0] * right + [0.0] * (n - right), dtype=torch.float64))
    share = right / n
    a, b, c = 1 + Z95**2 / n, -(2 * share + Z95**2 / n), share**2  # a p^2 + b p + c = 0
    assert (low, high) == pytest.approx(tuple(sorted(np.roots([a, b, c]).real)), abs=1e-12)
    assert 0 <= low <= share <= high <= 1


def test_the_interval_is_that_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, n in [(3, 40), (39, 40), (200, 400)]:
        expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        found = interval(torch.tensor([1.0] * right + [0.0] * (n - right), dtype=torch.float64))
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_other_outcomes_get_the_normal_interval() -> None:
    outcomes = torch.tensor([0.5, 1.5, 2.5, 3.5], dtype=torch.float64)
    half = 1.959963984540054 * np.std(outcomes.numpy(), ddof=1) / 2
    assert interval(outcomes) == pytest.approx((2 - half, 2 + half), abs=1e-12)


def test_outcomes_are_averaged_in_double_precision() -> None:
    outcomes = torch.full((3,), 1.0, dtype=torch.float32) / 3
    assert summarize(outcomes, 3).value == float(outcomes.double().mean())
    assert summarize(torch.tensor([True, True, False, False]), 4).value == 0.5


@pytest.mark.parametrize("number", [0.25, np.float32(0.25), torch.tensor(0.25), torch.tensor([0.25])])
def test_one_number_is_a_value_without_an_interval(number: object) -> None:
    found = summarize(number, 50)
    assert (found.value, found.ci95) == (0.25, None)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (float("nan"), "the metric is nan, expected a finite number"),
        (torch.tensor(float("inf")), "the metric is inf"),
        (torch.tensor([1.0, float("nan"), 1.0, float("-inf")]), "not finite on 2 of 4 samples"),
        (torch.ones(3), "Tensor of shape (3,), expected one number or one outcome for each of 4 samples"),
        (torch.ones(4, 2), "Tensor of shape (4, 2)"),
        (None, "the metric returned NoneType, expected"),
        ("much", "the metric returned str"),
        ([1.0, 0.0, 1.0, 1.0], "the metric returned list"),
    ],
)
def test_anything_else_fails_the_candidate_and_says_what_it_was(result: object, words: str) -> None:
    with pytest.raises(CandidateError) as caught:
        summarize(result, 4)
    assert words in str(caught.value)
