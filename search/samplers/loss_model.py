"""How much loss a policy has, predicted from the sensitivities and corrected by the trials that were told.

The loss is taken as a power of the sum of what the sites cost, as SPDY's learned coefficients have it (Frantar &
Alistarh 2022, arXiv:2201.13096, section 3), but in logarithms and with a belief about each coefficient:

    log loss = a + b log sum_s exp(log sensitivity[s, c_s] + theta[s, c_s])                                      (1)

theta is Gaussian: one number a site, and one that varies smoothly over the site's choices. It is found by Gauss-Newton
steps, each a Bayesian linear regression in which a site counts by its share of the sum (Bishop 2006, section 3.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular

from search.samplers.features import Features, Terms

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

STEPS = 5  # of Gauss-Newton
DAMPING = 0.8
MOST = 7.0  # of theta: a factor of 1,000
Belief = tuple[float, float, float]

BELIEFS = ((0.3, 0.2, 0.1), (0.3, 0.2, 0.3), (0.8, 0.5, 0.1), (0.8, 0.5, 0.3), (1.8, 1.0, 0.1), (1.8, 1.5, 0.3))
FIRST = 2  # the belief with which kinds of sensitivity are compared
SETTING = 1.0  # standard deviation of what a setting costs, in logs


@dataclass(frozen=True, eq=False)
class LossModel:
    """What the trials say about theta and about a, b of equation 1.

    Attributes:
        features: what is known of the sites.
        kind: which sensitivity it starts from; 0 is the mean of all, 1 a rule of thumb.
        belief: standard deviations of theta's site part, of its choice part, and of the measured log loss.
        a, b: of equation 1.
        rows: features of the trials, (trials, weights), where it was linearised last.
        factor: Cholesky factor of their covariance, (trials, trials).
        wished: what the weights have to explain, (trials,).
        evidence: log of how probable the trials are.
    """

    features: Features
    kind: int
    belief: Belief
    a: float
    b: float
    rows: Floats
    factor: Floats
    wished: Floats
    noise: Floats
    evidence: float

    def weights(self, draw: np.random.Generator | None = None) -> Floats:
        """The weights that are most probable; with `draw` a sample of those that are possible (Matheron's rule)."""
        count = self.rows.shape[1]
        if draw is None:
            return self._probable
        first = np.asarray(draw.standard_normal(count))
        missed = self.wished - self.rows @ first - self.noise * draw.standard_normal(len(self.rows))
        return np.asarray(first + self.rows.T @ _solve(self.factor, missed))

    @cached_property
    def _probable(self) -> Floats:
        return np.asarray(self.rows.T @ _solve(self.factor, self.wished))

    @cached_property
    def _theta(self) -> "_Theta":
        return _Theta(self.features, self.belief, self._probable)

    def costs(self, table: int, weights: Floats) -> list[Floats]:
        """exp(log sensitivity + theta) of each choice at each site of a table, for the dynamic programme."""
        found, theta = [], _Theta(self.features, self.belief, weights)
        for i, column in enumerate(self.features.columns(table)):
            found.append(np.exp(self.features.kinds[self.kind][table][i] + theta.of(column)))
        return found

    def mean(self, table: int, numbers: Ints) -> Floats:
        """Mean log loss of policies of a table, (policies,), as `predict` gives it."""
        terms = self.features.terms(table, numbers, self.kind)
        total, _ = _total(terms.logs + self._theta.at(terms))
        return np.asarray(self.a + self.b * total)

    def predict(self, table: int, numbers: Ints) -> tuple[Floats, Floats]:
        """Mean and standard deviation of the log loss of policies of a table, (policies,) each."""
        terms = self.features.terms(table, numbers, self.kind)
        total, shares = _total(terms.logs + self._theta.at(terms))
        scaled = self.features.functions(terms.choices) * _scale(self.features, self.belief)
        rows = scaled * shares[:, self.features.site_of]
        spread = (rows**2).sum(axis=1) - (_half(self.factor, self.rows @ rows.T) ** 2).sum(axis=0)
        return np.asarray(self.a + self.b * total), self.b * np.sqrt(np.maximum(spread, 1e-8))


def learn(features: Features, trials: Sequence[tuple[int, Ints]], logs: Floats) -> LossModel:
    """The model that explains the measured log losses best.

    Args:
        features: what is known of the sites.
        trials: the table of each, and its choices' numbers, (sites of the table,).
        logs: their measured log losses, (trials,).
    """
    every = [features.joined(trials, kind) for kind in range(len(features.kinds))]
    functions, doubt = features.functions(every[0].choices), _doubts(logs)

    def fit(kind: int, belief: Belief) -> LossModel:
        return _fit(features, kind, every[kind].logs, functions, logs, doubt, belief)

    begun = max((fit(kind, BELIEFS[FIRST]) for kind in range(len(every))), key=_evidence)
    others = [fit(begun.kind, belief) for i, belief in enumerate(BELIEFS) if i != FIRST]
    return max((*others[:FIRST], begun, *others[FIRST:]), key=_evidence)


def _evidence(model: LossModel) -> float:
    return model.evidence


def unlearned(features: Features) -> LossModel:
    """The model before any trial: the last kind of sensitivity as it is."""
    none, kind = np.zeros(0), len(features.kinds) - 1
    rows = np.zeros((0, len(features.site_of)))
    return LossModel(features, kind, BELIEFS[FIRST], 0.0, 1.0, rows, np.zeros((0, 0)), none, none, 0.0)


def _doubts(logs: Floats) -> Floats:
    """Factor of the noise: a model that lost nearly everything says little about how the sites share in it."""
    return 1.0 + np.maximum(0.0, logs - (np.median(logs) + 1.0))


def _fit(
    features: Features, kind: int, known: Floats, functions: Floats, logs: Floats, doubt: Floats, belief: Belief
) -> LossModel:
    """The model of one kind of sensitivity and one belief.

    Args:
        features: what is known of the sites.
        kind: of sensitivity.
        known: log sensitivities of that kind, (trials, sites).
        functions: what each weight counts, (trials, weights).
        logs: measured log losses, (trials,).
        doubt: factor of their noise, (trials,).
        belief: see `LossModel`.
    """
    theta, scaled = np.zeros_like(known), functions * _scale(features, belief)
    for _ in range(STEPS):
        total, shares = _total(known + theta)
        a, b = _line(total, logs, doubt)
        rows = scaled * shares[:, features.site_of]
        wished = (logs - a) / b - total + (shares * theta).sum(axis=1)
        noise = belief[2] * doubt / b
        covariance = rows @ rows.T + np.diag(noise**2)
        factor: Floats = np.asarray(np.linalg.cholesky(covariance), np.float64)
        weights = rows.T @ _solve(factor, wished)
        now = np.add.reduceat(scaled * weights, features.starts, axis=1)
        theta = np.clip(theta + DAMPING * (now - theta), -MOST, MOST)
    half = _half(factor, wished)
    # the change of variables from log loss to `wished` is a factor of b for each trial
    evidence = -0.5 * float(half @ half) - float(np.log(np.diag(factor)).sum()) - len(logs) * float(np.log(b))
    return LossModel(features, kind, belief, a, b, rows, factor, wished, noise, evidence)


def _line(total: Floats, logs: Floats, doubt: Floats) -> tuple[float, float]:
    """The a and b of equation 1, by weighted least squares, b believed to be 1 +- 0.3."""
    weight = doubt**-2.0
    mean_x, mean_y = float(np.average(total, weights=weight)), float(np.average(logs, weights=weight))
    x, y = total - mean_x, logs - mean_y
    prior = 0.1  # (0.1 noise / 0.3) ** 2
    b = float(((weight * x * y).sum() + prior) / ((weight * x * x).sum() + prior))
    b = min(2.0, max(0.4, b))
    return mean_y - b * mean_x, b


class _Theta:
    """theta of equation 1 from its weights."""

    def __init__(self, features: Features, belief: Belief, weights: Floats) -> None:
        scaled = weights * _scale(features, belief)
        self._parts = [
            own[0] + features.smooth(site) @ own[1:] for site, own in enumerate(np.split(scaled, features.starts[1:]))
        ]

    def of(self, site: int) -> Floats:
        """Of a site's choices, (choices,)."""
        return np.asarray(self._parts[site])

    def at(self, terms: Terms) -> Floats:
        """Of policies, (policies, sites)."""
        return np.stack([part[terms.choices[:, site]] for site, part in enumerate(self._parts)], axis=1)


def _scale(features: Features, belief: Belief) -> Floats:
    """Standard deviation of what each weight adds to theta, (weights,)."""
    found = np.full(len(features.site_of), belief[1])
    found[features.starts] = belief[0]
    found[features.site_of == features.sites - 1] = SETTING
    found[features.starts[-1]] = 0.0
    return found


def _total(logs: Floats) -> tuple[Floats, Floats]:
    """The log of the sum of exponentials over sites, (policies,), and each site's share, (policies, sites)."""
    top = logs.max(axis=1, keepdims=True)
    parts = np.exp(logs - top)
    total = parts.sum(axis=1, keepdims=True)
    return (np.log(total) + top)[:, 0], parts / total


def _half(factor: Floats, right: Floats) -> Floats:
    """L^-1 right."""
    return np.asarray(solve_triangular(factor, right, lower=True, check_finite=False)) if len(factor) else right


def _solve(factor: Floats, right: Floats) -> Floats:
    """(L L^T)^-1 right."""
    return np.asarray(cho_solve((factor, True), right, check_finite=False)) if len(factor) else right
