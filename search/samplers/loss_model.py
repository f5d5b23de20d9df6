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

from search.samplers.one_thread import one_thread
from search.samplers.table import SiteTable, Table, log_losses

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RANK = 6  # smooth functions over a site's choices
STEPS = 5  # of Gauss-Newton
DAMPING = 0.8
MOST = 7.0  # of theta: a factor of 1,000
BELIEFS = ((0.3, 0.2, 0.1), (0.3, 0.2, 0.3), (0.8, 0.5, 0.1), (0.8, 0.5, 0.3), (1.8, 1.0, 0.1), (1.8, 1.5, 0.3))
SETTING = 1.0  # standard deviation of what a setting costs, in logs


@dataclass(frozen=True, eq=False)
class Terms:
    """Policies as the model sees them.

    Attributes:
        logs: log sensitivity of each site's choice, (policies, sites); -inf where a site is gone.
        sites, choices: where each is found, int64 (policies, sites).
    """

    logs: Floats
    choices: Ints


class Features:
    """What is known of the sites of all tables before any trial.

    Args:
        tables: the settings.
    """

    @one_thread
    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self._at = {name: i for i, name in enumerate(dict.fromkeys(s.name for t in tables for s in t.sites))}
        self.sites = len(self._at) + 1  # the last one is the setting
        self._smooth: dict[int, Floats] = {}
        logs = [[_with_rule(site) for site in table.sites] for table in tables]
        count = logs[0][0].shape[1] if logs and logs[0] else 0
        scale = _scales([part for own in logs for part in own], count)
        self.kinds = [[[_filled(part - scale, kind) for part in own] for own in logs] for kind in range(-1, count)]
        for table in tables:
            for site in table.sites:
                self._smooth.setdefault(self._at[site.name], _smooth(site))
        self._settings = self._setting_logs()

    def _setting_logs(self) -> Floats:
        """Log of what each setting costs, (tables,); -inf where nothing is cut out, as its loss of exactly 0 says.

        What was not measured, or is infinite, is taken for as bad as the worst that was; if none was, for as bad as the
        middle choices of its sites together.
        """
        known = [table.loss for table in self.tables if 0 < table.loss < np.inf]
        found = []
        for i, table in enumerate(self.tables):
            middle = sum(float(np.exp(np.median(part))) for part in self.kinds[-1][i])
            guess = max(known, default=middle or 1.0)
            loss = table.loss if 0 <= table.loss < np.inf else guess
            found.append(np.log(loss) if loss > 0 else -np.inf)
        return np.array(found)

    def columns(self, table: int) -> list[int]:
        """Where the sites of a table are among all sites."""
        return [self._at[site.name] for site in self.tables[table].sites]

    def terms(self, table: int, numbers: Ints, kind: int) -> Terms:
        """Policies of a table; `numbers` are their choices, (policies, sites of the table)."""
        logs = np.full((len(numbers), self.sites), -np.inf)
        choices = np.zeros((len(numbers), self.sites), np.int64)
        for i, column in enumerate(self.columns(table)):
            logs[:, column] = self.kinds[kind][table][i][numbers[:, i]]
            choices[:, column] = numbers[:, i]
        logs[:, -1] = self._settings[table]
        choices[:, -1] = table
        return Terms(logs, choices)

    def smooth(self, site: int) -> Floats:
        """Smooth functions over the choices of a site, (choices, <= RANK); for the setting one of its own each."""
        return np.eye(len(self.tables)) if site == self.sites - 1 else self._smooth[site]


def _with_rule(site: SiteTable) -> Floats:
    """Log sensitivities, (choices, kinds + 1), after a rule of thumb that no measurement can spoil.

    Rounding a normal variable to b bits within three standard deviations costs 3 * 4**-b of its square; pruning the
    smallest share r of it, about r**3.5. A site counts by its size.
    """
    whole = float(site.bytes.max())
    bits, ratio = site.axis("bits"), site.axis("ratio")
    if bits is None:
        bits = np.full(len(site.points), 8.0) if ratio is not None else np.asarray(8.0 * site.bytes / whole)
    cost: Floats = np.asarray(3 * np.exp2(-2 * bits))
    if ratio is not None:
        cost = cost + np.abs(ratio) ** 3.5
    return np.concatenate([np.log(cost * whole)[:, None], log_losses(site)], axis=1)


def _scales(parts: Sequence[Floats], count: int) -> Floats:
    """What is to be subtracted from each kind, so that all are on the last one's scale that is known."""
    if not parts:
        return np.zeros(count)
    every = np.concatenate(parts)
    middle = np.array(
        [np.median(column[~np.isnan(column)]) if (~np.isnan(column)).any() else np.nan for column in every.T]
    )
    known = middle[~np.isnan(middle)]
    return np.where(np.isnan(middle), 0.0, middle - (known[-1] if known.size else 0.0))


def _filled(logs: Floats, kind: int) -> Floats:
    """One kind (-1: the mean of those known), (choices,), with that mean where it is not known."""
    known = ~np.isnan(logs)
    measured = known[:, 1:] if known[:, 1:].any() else known
    part = logs[:, -measured.shape[1] :]
    mean = np.where(measured, part, 0.0).sum(axis=1) / np.maximum(measured.sum(axis=1), 1)
    return mean if kind < 0 else np.where(known[:, kind], logs[:, kind], mean)


def _smooth(site: SiteTable) -> Floats:
    """Square root of a kernel over choices: alike are those of a like size whose axes have like values."""
    place = np.stack([np.log2(np.maximum(site.bytes, 1)), *(2 * column for column in site.places().T)], axis=1)
    square = ((place[:, None] - place[None]) ** 2).sum(axis=2)
    values, vectors = np.linalg.eigh(np.exp(-square / 4.0))
    top = np.argsort(values)[::-1][:RANK]
    return np.asarray(vectors[:, top] * np.sqrt(np.maximum(values[top], 0.0)))


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
    belief: tuple[float, float, float]
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
        rows = _rows(self.features, self.belief, terms, shares)
        spread = (rows**2).sum(axis=1) - (_half(self.factor, self.rows @ rows.T) ** 2).sum(axis=0)
        return self.a + self.b * total, self.b * np.sqrt(np.maximum(spread, 1e-8))


def learn(features: Features, trials: Sequence[tuple[int, Ints]], logs: Floats) -> LossModel:
    """The model that explains the measured log losses best.

    Args:
        features: what is known of the sites.
        trials: the table of each, and its choices' numbers, (sites of the table,).
        logs: their measured log losses, (trials,).
    """
    every = [
        _joined([features.terms(table, numbers[None], kind) for table, numbers in trials])
        for kind in range(len(features.kinds))
    ]
    doubt = _doubts(logs)
    begun = [_fit(features, kind, terms, logs, doubt, BELIEFS[2]) for kind, terms in enumerate(every)]
    best = max(begun, key=lambda one: one.evidence)
    terms = every[best.kind]
    return max(
        (_fit(features, best.kind, terms, logs, doubt, belief) for belief in BELIEFS), key=lambda one: one.evidence
    )


def unlearned(features: Features) -> LossModel:
    """The model before any trial: the last kind of sensitivity as it is."""
    none, kind = np.zeros(0), len(features.kinds) - 1
    count = sum(1 + features.smooth(site).shape[1] for site in range(features.sites))
    return LossModel(features, kind, BELIEFS[2], 0.0, 1.0, np.zeros((0, count)), np.zeros((0, 0)), none, none, 0.0)


def _doubts(logs: Floats) -> Floats:
    """Factor of the noise: a model that lost nearly everything says little about how the sites share in it."""
    return 1.0 + np.maximum(0.0, logs - (np.median(logs) + 1.0))


def _fit(
    features: Features, kind: int, terms: Terms, logs: Floats, doubt: Floats, belief: tuple[float, float, float]
) -> LossModel:
    theta = np.zeros_like(terms.logs)
    for _ in range(STEPS):
        total, shares = _total(terms.logs + theta)
        a, b = _line(total, logs, doubt)
        rows = _rows(features, belief, terms, shares)
        wished = (logs - a) / b - total + (shares * theta).sum(axis=1)
        noise = belief[2] * doubt / b
        covariance = rows @ rows.T + np.diag(noise**2)
        factor: Floats = np.asarray(np.linalg.cholesky(covariance), np.float64)
        weights = rows.T @ _solve(factor, wished)
        now = _Theta(features, belief, weights).at(terms)
        theta = np.clip(theta + DAMPING * (now - theta), -MOST, MOST)
    half = _half(factor, wished[:, None])[:, 0]
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

    def __init__(self, features: Features, belief: tuple[float, float, float], weights: Floats) -> None:
        self._parts: list[Floats] = []
        start = 0
        for site in range(features.sites):
            functions = features.smooth(site)
            own, choice = _beliefs(features, belief, site)
            end = start + 1 + functions.shape[1]
            self._parts.append(own * weights[start] + choice * functions @ weights[start + 1 : end])
            start = end

    def of(self, site: int) -> Floats:
        """Of a site's choices, (choices,)."""
        return self._parts[site]

    def at(self, terms: Terms) -> Floats:
        """Of policies, (policies, sites)."""
        return np.stack([part[terms.choices[:, site]] for site, part in enumerate(self._parts)], axis=1)


def _beliefs(features: Features, belief: tuple[float, float, float], site: int) -> tuple[float, float]:
    return (0.0, SETTING) if site == features.sites - 1 else (belief[0], belief[1])


def _rows(features: Features, belief: tuple[float, float, float], terms: Terms, shares: Floats) -> Floats:
    """Derivatives of the log sum with respect to the weights, (policies, weights)."""
    parts = []
    for site in range(features.sites):
        share = shares[:, site, None]
        own, choice = _beliefs(features, belief, site)
        parts += [own * share, choice * share * features.smooth(site)[terms.choices[:, site]]]
    return np.concatenate(parts, axis=1)


def _total(logs: Floats) -> tuple[Floats, Floats]:
    """The log of the sum of exponentials over sites, (policies,), and each site's share, (policies, sites)."""
    top = logs.max(axis=1, keepdims=True)
    parts = np.exp(logs - top)
    total = parts.sum(axis=1, keepdims=True)
    return (np.log(total) + top)[:, 0], parts / total


def _joined(parts: Sequence[Terms]) -> Terms:
    return Terms(np.concatenate([one.logs for one in parts]), np.concatenate([one.choices for one in parts]))


def _half(factor: Floats, right: Floats) -> Floats:
    """L^-1 right."""
    return np.asarray(np.linalg.solve(factor, right)) if len(factor) else right


def _solve(factor: Floats, right: Floats) -> Floats:
    """(L L^T)^-1 right."""
    return np.asarray(np.linalg.solve(factor.T, np.linalg.solve(factor, right))) if len(factor) else right
