"""Racing: whether a candidate can still beat a threshold, judged from the validation samples seen so far.

The samples are a finite population in random order, and references (finished candidates near in size) say how hard each
of them is. Only the sum of the outcomes not seen is uncertain. A regression on the references predicts it, as in
model-assisted survey sampling (Särndal, Swensson and Wretman 1992, chapter 6): the order is random, so the residuals on
the samples seen tell how wrong the regression is on the others, also where a candidate is like none of the references.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

NORMAL = NormalDist()
FITTED = 500  # samples of each reference that the prior is fitted to
SLOPES = (3.0, -1.0)  # logits before any data, by outcome (0..1) and by difficulty (standard deviations)
WIDE_SDS = (2.0, 2.0, 1.0)  # of level and slopes, where they are fitted to the references
ALONE_SDS = (1.0, 1.5, 0.5)  # of a candidate's, where one reference cannot be judged by others
SLOPE_SD = 0.3  # of a candidate's slopes otherwise, relative to those of the references, and at least in logits
LEVEL_SD = 0.6  # logits: how far a candidate's level may be from what its losses say
LEVEL_WEIGHT = 3.0  # references that this guess is worth
TAILS = 4.0  # degrees of freedom of the level's prior: what is seen of an odd candidate overrules it
FREEDOM = 8.0  # degrees of freedom of a count, beside what the outcomes seen are worth
RIDGE = 20.0  # samples that the equal mix of references is worth
FLOOR = 1e-3  # of the references' mean loss: smaller losses are as good as none


def typical_loss(losses: NDArray[np.float32]) -> float:
    """The square of the mean root of samples' losses, (samples,): what a policy loses, as far as few samples can say.

    The mean itself is mostly that of a few samples that the model is unsure of. On digits, among policies near the
    front, the ranks of means on 400 samples correlate by 0.62 with those on 400 others, the ranks of these by 0.90; and
    these tell more of the accuracy on the others, 0.66 against 0.56.
    """
    return float(np.sqrt(losses, dtype=np.float64).mean()) ** 2


@dataclass(frozen=True, eq=False)
class Outcomes:
    """Evidence per validation sample, in the racing order.

    Attributes:
        values: the metric's outcome (n,) float32, higher is better.
        losses: the KL to the float model's output (n,) float32; squared error for outputs that are values.
    """

    values: NDArray[np.float32]
    losses: NDArray[np.float32]


@dataclass(frozen=True)
class Verdict:
    """An estimate of the whole split's accuracy from the samples seen.

    Attributes:
        accuracy: the predictive mean.
        low: lower end of the predictive interval at the race's confidence; -inf where nothing is known.
        high: its upper end; inf where nothing is known.
        hopeless: P(accuracy on all samples > threshold) < 1 - confidence.
    """

    accuracy: float
    low: float
    high: float
    hopeless: bool


@dataclass(frozen=True, eq=False)
class Race:
    """What a candidate must beat, and how sure one must be that it cannot.

    Attributes:
        threshold: accuracy on all samples that must be exceeded, strictly.
        references: outcomes on all samples of candidates near in size, most relevant first; may be empty.
        confidence: such as 0.95; with 1 only what is certain stops.

    >>> wrong = Outcomes(np.zeros(100, np.float32), np.ones(100, np.float32))
    >>> Race(0.9, (), 0.95).judge(wrong, 400).hopeless
    True
    """

    threshold: float
    references: tuple[Outcomes, ...]
    confidence: float

    def judge(self, seen: Outcomes, samples: int) -> Verdict:
        """Judge a candidate by its outcomes on the first m of the samples.

        Args:
            seen: of the first m samples, 0 <= m <= samples.
            samples: N, of the whole split.

        Raises:
            ValueError: the lengths do not fit.
        """
        values = seen.values.astype(np.float64)  # (m,)
        if values.ndim != 1 or seen.losses.shape != values.shape or values.size > samples:
            given = f"values {seen.values.shape} and losses {seen.losses.shape}"
            raise ValueError(f"seen has {given}, expected (m,) each, m at most {samples}")
        if any(one.values.shape != (samples,) or one.losses.shape != (samples,) for one in self.references):
            raise ValueError(f"a reference has other than {samples} outcomes and losses")
        if values.size == 0:
            return Verdict(0.0, -math.inf, math.inf, False)
        if values.size == samples:
            return self._whole(float(values.mean()))
        if not self._binary or not _is_binary(values):
            return self._linear(values, samples)
        right = int(values.sum())
        if self.references:
            return self._counted(right, values.size, samples, *self._logistic(values, seen.losses))
        return self._counted(right, values.size, samples, *_beta(right, values.size, samples))

    def judge_chunks(self, chunks: Sequence[tuple[float, int]], samples: int) -> Verdict:
        """Judge a candidate by one number for each chunk, where the metric gives no outcomes.

        The split's value is taken to be the mean of its chunks' values, weighted by their samples. Fewer than three
        chunks say nothing; of more, the t-interval is taken with one degree of freedom less than it has, because it is
        looked at again and again.

        Args:
            chunks: (value, samples) of each.
            samples: N, of the whole split.
        """
        values = np.array([value for value, _ in chunks], dtype=np.float64)
        sizes = np.array([size for _, size in chunks], dtype=np.float64)
        seen, count = float(sizes.sum()), len(chunks)
        mean = float(values @ sizes / seen) if count else 0.0
        if count and seen >= samples:
            return self._whole(mean)
        if count < 3:
            return Verdict(mean, -math.inf, math.inf, False)
        variance = float(sizes @ (values - mean) ** 2 / seen) / (count - 1) * (1 - seen / samples)
        return self._spread(mean, math.sqrt(variance), count - 2)

    @cached_property
    def _binary(self) -> bool:
        return all(_is_binary(one.values) for one in self.references)

    @cached_property
    def _prior(self) -> "_Prior":
        return _Prior.of(self.references)

    def _whole(self, mean: float) -> Verdict:
        """The verdict of all samples; equal to the last bits is a tie."""
        return Verdict(mean, mean, mean, mean <= self.threshold + 1e-9 * max(1.0, abs(self.threshold)))

    def _spread(self, mean: float, sd: float, freedom: float) -> Verdict:
        """The verdict of a t-distributed accuracy."""
        if sd == 0:  # what was not seen to vary may yet do so
            return Verdict(mean, -math.inf, math.inf, False)
        half = sd * _t_quantile(0.5 + self.confidence / 2, freedom)
        chance = NORMAL.cdf(_normal_score((mean - self.threshold) / sd, freedom))
        return Verdict(mean, mean - half, mean + half, chance < 1 - self.confidence)

    def _counted(self, right: int, seen: int, samples: int, wrong: float, variance: float) -> Verdict:
        """The verdict of outcomes that are 0 or 1, from mean and variance of the number wrong among those not seen."""
        rest = samples - seen
        needed = math.floor(self.threshold * samples + 1e-3) + 1 - right  # strictly more; 1e-3 is for float32 means
        freedom, tail = FREEDOM + right * (seen - right) / seen, 0.5 - self.confidence / 2
        if wrong <= rest / 2:  # the rarer outcome is counted: its distribution is skewed, and ends at none
            count = _Count(wrong, variance, freedom)
            chance = count.below(rest - needed + 0.5)
            few, many = rest - count.quantile(1 - tail), rest - count.quantile(tail)
        else:
            count = _Count(rest - wrong, variance, freedom)
            chance = 1 - count.below(needed - 0.5)
            few, many = count.quantile(tail), count.quantile(1 - tail)
        low, high = (right + min(max(bound, 0.0), float(rest)) for bound in (few, many))
        mean = right + rest - wrong
        hopeless = needed > rest or (needed > 0 and chance < 1 - self.confidence)
        return Verdict(mean / samples, min(low, mean) / samples, max(high, mean) / samples, hopeless)

    def _logistic(self, values: Floats, losses: NDArray[np.float32]) -> tuple[float, float]:
        """Mean and variance of the number wrong among the samples not seen, by a regression on the references."""
        seen, prior = values.size, self._prior
        x = prior.features(losses)  # (N, 3)
        weights, covariance = _fit(x[:seen], values, prior.weights, prior.sds, TAILS)
        p = _expit(x @ weights)
        noise = p * (1 - p)
        squares = float(((values - p[:seen]) ** 2).sum())
        misfit = max(1.0, (squares + 0.5) / (float(noise[:seen].sum()) + 0.5))
        slope = noise[seen:] @ x[seen:]  # of the number right, by the weights
        variance = float(noise[seen:].sum() + slope @ covariance @ slope)
        return float((1 - p[seen:]).sum()), variance * misfit

    def _linear(self, values: Floats, samples: int) -> Verdict:
        """The verdict of outcomes of any value, by least squares on the mix of references that is most like it."""
        seen, rest, count = values.size, samples - values.size, len(self.references)
        mean, guess = float(values.mean()), 0.0  # guess: the squared residual of one more sample
        if seen < count + 3:
            return Verdict(mean, -math.inf, math.inf, False)
        x = np.ones((samples, 1))
        if count:
            known = np.stack([one.values for one in self.references]).astype(np.float64)  # (K, N)
            mixed = _mix(known, values) @ known
            x = np.stack([x[:, 0], mixed - mixed.mean()], 1)
            guess = float(((known[0] - known.mean(0)) ** 2).mean())
        inverse = np.linalg.pinv(x[:seen].T @ x[:seen], rcond=1e-9, hermitian=True)
        weights = inverse @ (x[:seen].T @ values)
        freedom = seen - count - 1
        error = (float(((values - x[:seen] @ weights) ** 2).sum()) + guess) / freedom
        slope = x[seen:].sum(0)
        total = float(values.sum() + slope @ weights)
        sd = math.sqrt(error * (rest + float(slope @ inverse @ slope))) / samples
        return self._spread(total / samples, sd, freedom)


@dataclass(frozen=True, eq=False)
class _Prior:
    """What the references say about any candidate near them, each of them judged by the others.

    Attributes:
        values: the references' outcomes (K, N).
        logs: their log losses (K, N).
        floor: added to a loss before its logarithm.
        middle: mean of the log losses.
        scale: standard deviation over samples of their mean.
        weights: of the features, in logits.
        sds: how far a candidate's weights are from these.
    """

    values: Floats
    logs: Floats
    floor: float
    middle: float
    scale: float
    weights: Floats
    sds: Floats

    @classmethod
    def of(cls, references: tuple[Outcomes, ...]) -> "_Prior":
        """Fit it to the first samples of each reference."""
        values = np.stack([one.values for one in references]).astype(np.float64)
        losses = _clean(np.stack([one.losses for one in references]))
        floor = FLOOR * float(losses.mean()) + 1e-9
        logs = np.log(losses + floor)
        middle, scale = float(logs.mean()), max(float(logs.mean(0).std()), 1e-3)
        share = float(np.clip(values.mean(), 0.02, 0.98))
        weights, sds = np.array([math.log(share / (1 - share)), *SLOPES]), np.array(ALONE_SDS)
        if len(values) > 1:
            some = slice(FITTED)
            weights, sds = _leave_one_out(values[:, some], logs[:, some], middle, scale, weights)
        return cls(values, logs, floor, middle, scale, weights, sds)

    def features(self, losses: NDArray[np.float32]) -> Floats:
        """(N, 3), for a candidate with these losses on the first samples."""
        own = np.log(_clean(losses) + self.floor)
        return _features(self.values, self.logs, own, self.middle, self.scale)


@dataclass(frozen=True)
class _Count:
    """A gamma distributed count through its cube root, which is near normal (Wilson and Hilferty 1931).

    Attributes:
        mean: more than 0.
        variance: more than 0.
        freedom: degrees of freedom of the variance.
    """

    mean: float
    variance: float
    freedom: float

    def below(self, value: float) -> float:
        """P(count <= value)."""
        if value <= 0 or self.mean <= 0:
            return float(value > 0)
        v = self.variance / (9 * self.mean**2)
        return NORMAL.cdf(_normal_score(((value / self.mean) ** (1 / 3) - (1 - v)) / math.sqrt(v), self.freedom))

    def quantile(self, share: float) -> float:
        """The value that the count is below with this probability."""
        if self.mean <= 0:
            return 0.0
        v = self.variance / (9 * self.mean**2)
        return self.mean * max(0.0, 1 - v + _t_quantile(share, self.freedom) * math.sqrt(v)) ** 3


def _leave_one_out(values: Floats, logs: Floats, middle: float, scale: float, start: Floats) -> tuple[Floats, Floats]:
    """Weights of the features and their standard deviations, each of K > 1 references being predicted by the others."""
    count = len(values)
    x = np.empty((*values.shape, 3))
    for k in range(count):
        others = [other for other in range(count) if other != k]
        x[k] = _features(values[others], logs[others], logs[k], middle, scale)
    weights, _ = _fit(x.reshape(-1, 3), values.reshape(-1), start, np.array(WIDE_SDS), None)
    p = _expit(x @ weights)  # (K, n)
    certain = (p * (1 - p)).sum(1) + 1
    levels = np.maximum(((values - p).sum(1) / certain) ** 2 - 1 / certain, 0)  # squared, beyond what is noise
    level = (LEVEL_WEIGHT * LEVEL_SD**2 + float(levels.sum())) / (LEVEL_WEIGHT + count)
    return weights, np.array([math.sqrt(level), *(SLOPE_SD * np.maximum(np.abs(weights[1:]), 1))])


def _features(values: Floats, logs: Floats, own: Floats, middle: float, scale: float) -> Floats:
    """One, the references' outcome and the predicted log loss of a candidate, (n, 3).

    Args:
        values: the references' outcomes (K, n).
        logs: their log losses (K, n).
        own: the candidate's log losses, on the first m samples.
        middle: taken off the predicted log loss.
        scale: that it is divided by.
    """
    mix = _mix(logs, own)
    shift = float((own - mix @ logs[:, : own.size]).mean())  # how much more it loses than they do
    share = np.maximum(mix, 0) + 0.02
    outcome = share / share.sum() @ values
    return np.stack([np.ones(values.shape[1]), outcome - outcome.mean(), (mix @ logs + shift - middle) / scale], 1)


def _mix(known: Floats, own: Floats) -> Floats:
    """Weights (K,) of the references `known` (K, n) that predict `own` (m,), by ridge regression to the equal mix."""
    count, m = len(known), own.size
    centred = known[:, :m] - known[:, :m].mean(1, keepdims=True)
    equal = np.full(count, 1 / count)
    gram = centred @ centred.T
    ridge = RIDGE * (float(np.trace(gram)) / (count * m) + 1e-12)
    error: Floats = centred @ (own - own.mean()) - gram @ equal
    step: Floats = np.linalg.solve(gram + ridge * np.eye(count), error)
    return equal + step


def _fit(x: Floats, y: Floats, prior: Floats, sds: Floats, tails: float | None) -> tuple[Floats, Floats]:
    """Logistic regression by Newton steps: weights and their covariance (Laplace).

    Args:
        x: features (n, f), the first of them 1.
        y: outcomes (n,), 0 or 1.
        prior: means of the weights (f,), normal a priori.
        sds: their standard deviations.
        tails: degrees of freedom where the first weight is t-distributed instead (by iterated reweighting).
    """
    weights, precision = prior.copy(), 1 / sds**2
    hessian = np.diag(precision)
    for _ in range(12):
        p = _expit(x @ weights)
        if tails is not None:
            precision[0] = (tails + 1) / (tails * sds[0] ** 2 + (weights[0] - prior[0]) ** 2)
        hessian = (x * (p * (1 - p))[:, None]).T @ x + np.diag(precision)
        step = np.linalg.solve(hessian, x.T @ (y - p) - precision * (weights - prior))
        weights += np.clip(step, -1.5, 1.5)  # cut: a whole step may overshoot where p is near 0 or 1
        if np.abs(step).max() < 1e-3:
            break
    return weights, np.asarray(np.linalg.inv(hessian), np.float64)


def _beta(right: int, seen: int, samples: int) -> tuple[float, float]:
    """Mean and variance of the beta-binomial number wrong among the samples not seen, with Jeffreys' prior."""
    rest, weight = samples - seen, seen + 1.0
    p = (seen - right + 0.5) / weight
    return rest * p, rest * p * (1 - p) * (weight + rest) / (weight + 1)


def _is_binary(values: NDArray[np.floating]) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _expit(logits: Floats) -> Floats:
    result: Floats = 1 / (1 + np.exp(-np.clip(logits, -30, 30)))
    return result


def _clean(losses: NDArray[np.float32]) -> Floats:
    """Losses that have a logarithm: those of a diverged candidate are not finite."""
    wide = losses.astype(np.float64)
    if not np.isfinite(wide).all():
        np.nan_to_num(wide, copy=False, nan=1e6, posinf=1e6, neginf=0.0)
    return np.maximum(wide, 0.0, out=wide)


def _normal_score(t: float, freedom: float) -> float:
    """The normal deviate of the same probability as a t deviate, to about 0.001 (Wallace 1959)."""
    size = math.sqrt(freedom * math.log1p(t * t / freedom)) * (8 * freedom + 1) / (8 * freedom + 3)
    return math.copysign(size, t)


def _t_quantile(share: float, freedom: float) -> float:
    """The t deviate of a probability, the inverse of `_normal_score`."""
    if not 0 < share < 1:
        return math.copysign(math.inf, share - 0.5)
    z = NORMAL.inv_cdf(share) * (8 * freedom + 3) / (8 * freedom + 1)
    return math.copysign(math.sqrt(freedom * math.expm1(z * z / freedom)), z)
