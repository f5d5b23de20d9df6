"""What trials say about hidden weights: against plain Bayesian regression, sampled integrals, and what was hidden."""

import numpy as np
import numpy.typing as npt
import pytest

from search.samplers.features import RANK, Features
from search.samplers.loss_model import LossModel, learn, unlearned
from search.samplers.table import SiteTable, Table

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Trials = list[tuple[int, Ints]]


def site(name: str, losses: Floats, bits: tuple[int, ...] = (2, 3, 4, 5, 6, 8)) -> SiteTable:
    """`losses` is (choices, kinds)."""
    points = tuple({f"{name}/bits": width} for width in bits)
    return SiteTable(name, points, np.array([1000 * width for width in bits]), losses)


def table_of(sites: int, draw: np.random.Generator, kinds: int = 1) -> Table:
    """Sites whose choices lose less with more bits."""
    plain = 4.0 ** -np.array([2, 3, 4, 5, 6, 8])
    made = [plain[:, None] * np.exp(draw.normal(0, 0.5, (6, kinds))) for _ in range(sites)]
    return Table(tuple(site(f"s{i}", losses) for i, losses in enumerate(made)), {}, 100)


def policies(table: Table, count: int, draw: np.random.Generator) -> Ints:
    return draw.integers(0, 6, (count, len(table.sites)))


def logs_of(table: Table, numbers: Ints, hidden: Floats, a: float = 0.0, b: float = 1.0, kind: int = 0) -> Floats:
    """Equation 1, by the definition."""
    terms = [one.losses[numbers[:, i], kind] * np.exp(hidden[i]) for i, one in enumerate(table.sites)]
    return np.asarray(a + b * np.log(np.sum(terms, axis=0)))


def trials_of(numbers: Ints, table: int = 0) -> Trials:
    return [(table, row) for row in numbers]


class TestOneSite:
    """With a single site the log of the sum is linear in what is learned: a plain Gaussian process."""

    def learned(self) -> tuple[Table, LossModel, Ints, Floats]:
        draw = np.random.default_rng(1)
        table = table_of(1, draw)
        numbers = policies(table, 12, draw)
        logs = logs_of(table, numbers, np.array([0.7])) + draw.normal(0, 0.1, 12)
        return table, learn(Features([table]), trials_of(numbers), logs), numbers, logs

    def test_mean_and_spread_are_those_of_gaussian_process_regression(self) -> None:
        _, model, numbers, logs = self.learned()
        known = model.features.kinds[model.kind][0][0]
        own, choice, noise = model.belief
        functions = model.features.smooth(0)
        kernel = own**2 + choice**2 * functions @ functions.T  # (choices, choices)
        at = numbers[:, 0]
        doubt = 1 + np.maximum(0, logs - np.median(logs) - 1)
        covariance = kernel[np.ix_(at, at)] + np.diag((noise * doubt / model.b) ** 2)
        gain = np.linalg.solve(covariance, kernel[at]).T  # (choices, trials)
        mean = model.a + model.b * (known + gain @ ((logs - model.a) / model.b - known[at]))
        spread = model.b * np.sqrt(np.diag(kernel - gain @ kernel[at]))
        found = model.predict(0, np.arange(6)[:, None])
        np.testing.assert_allclose(found[0], mean, rtol=1e-6)
        np.testing.assert_allclose(found[1], spread, rtol=1e-4)

    def test_evidence_is_the_density_of_the_trials(self) -> None:
        _, model, numbers, logs = self.learned()
        own, choice, _ = model.belief
        functions = model.features.smooth(0)
        at = numbers[:, 0]
        kernel = (own**2 + choice**2 * functions @ functions.T)[np.ix_(at, at)] + np.diag(model.noise**2)
        missed = logs - model.a - model.b * model.features.kinds[model.kind][0][0][at]
        _, size = np.linalg.slogdet(model.b**2 * kernel)
        density = -0.5 * (missed @ np.linalg.solve(model.b**2 * kernel, missed) + size)  # but for 2 pi
        assert model.evidence == pytest.approx(density, rel=1e-6)

    def test_draws_have_the_predicted_mean_and_spread(self) -> None:
        _, model, _, _ = self.learned()
        draw = np.random.default_rng(0)
        draws = np.array([np.log(model.costs(0, model.weights(draw))[0]) for _ in range(4000)])
        mean, spread = model.predict(0, np.arange(6)[:, None])
        np.testing.assert_allclose(model.a + model.b * draws.mean(axis=0), mean, atol=5 * spread.max() / 4000**0.5)
        np.testing.assert_allclose(model.b * draws.std(axis=0), spread, rtol=0.06)


class TestSeveralSites:
    def test_the_mean_is_near_that_of_all_weights_that_are_possible(self) -> None:
        """Against an integral over the belief, by importance sampling, at the a and b that were found."""
        draw = np.random.default_rng(2)
        table = table_of(2, draw)
        numbers = policies(table, 8, draw)
        logs = logs_of(table, numbers, np.array([0.8, -0.5])) + draw.normal(0, 0.1, 8)
        model = learn(Features([table]), trials_of(numbers), logs)
        own, choice, _ = model.belief
        count = 200_000
        theta = [
            own * draw.standard_normal((count, 1))
            + choice * draw.standard_normal((count, model.features.smooth(s).shape[1])) @ model.features.smooth(s).T
            for s in range(2)
        ]
        every = np.array([[i, j] for i in range(6) for j in range(6)])
        known = model.features.kinds[model.kind][0]
        terms = [known[s][every[:, s]] + theta[s][:, every[:, s]] for s in range(2)]
        losses = model.a + model.b * np.logaddexp(*terms)  # (count, policies)
        at = numbers @ [6, 1]
        missed = (logs - losses[:, at]) / (model.noise * model.b)
        likely = -0.5 * (missed**2).sum(axis=1)
        weight = np.exp(likely - likely.max())
        weight /= weight.sum()
        assert 1 / (weight**2).sum() > 200  # effective draws
        mean = weight @ losses
        found, spread = model.predict(0, every)
        true = np.sqrt(weight @ (losses - mean) ** 2)
        assert np.abs(found - mean).max() < 0.5 * spread.max()
        assert np.sqrt(np.mean((found - mean) ** 2)) < 0.3 * np.mean(spread)
        assert 0.7 < np.mean(spread) / np.mean(true) < 1.4

    @pytest.mark.parametrize("seed", range(3))
    def test_hidden_weights_are_found(self, seed: int) -> None:
        draw = np.random.default_rng(seed)
        table = table_of(8, draw)
        hidden = draw.normal(0, 1.2, 8)
        numbers = policies(table, 120, draw)
        logs = logs_of(table, numbers, hidden, a=-1.0, b=0.9) + draw.normal(0, 0.05, 120)
        model = learn(Features([table]), trials_of(numbers), logs)
        costs = model.costs(0, model.weights())
        guessed = np.array(
            [np.log(own / one.losses[:, 0])[:2].mean() for own, one in zip(costs, table.sites, strict=True)]
        )
        assert np.corrcoef(guessed, hidden)[0, 1] > 0.95
        fresh = policies(table, 200, draw)
        mean, _ = model.predict(0, fresh)
        truth = logs_of(table, fresh, hidden, a=-1.0, b=0.9)
        assert np.sqrt(np.mean((mean - truth) ** 2)) < 0.2 * truth.std()

    def test_intervals_cover(self) -> None:
        """Nine of ten losses that were never seen are within 90 % intervals, the luck of a measurement included."""
        inside = []
        for seed in range(12):
            draw = np.random.default_rng(seed)
            table = table_of(6, draw)
            hidden = draw.normal(0, 0.8, 6)
            numbers = policies(table, 60, draw)
            logs = logs_of(table, numbers, hidden) + draw.normal(0, 0.1, 60)
            model = learn(Features([table]), trials_of(numbers[:25]), logs[:25])
            mean, spread = model.predict(0, numbers[25:])
            width = 1.645 * np.hypot(spread, 0.1)
            inside.append(np.abs(logs[25:] - mean) <= width)
        assert 0.8 < np.mean(inside) < 0.99

    def test_more_trials_make_it_surer(self) -> None:
        draw = np.random.default_rng(5)
        table = table_of(6, draw)
        numbers = policies(table, 80, draw)
        logs = logs_of(table, numbers, draw.normal(0, 1, 6))
        fresh = policies(table, 100, draw)
        spreads = [
            learn(Features([table]), trials_of(numbers[:n]), logs[:n]).predict(0, fresh)[1].mean() for n in (8, 80)
        ]
        assert spreads[1] < 0.6 * spreads[0]


class TestTogether:
    def test_many_policies_are_predicted_as_each_alone(self) -> None:
        """To the last bit: what runs is predicted one by one in a search, and all at once when it goes on."""
        draw = np.random.default_rng(4)
        table = table_of(31, draw)
        numbers = policies(table, 60, draw)
        model = learn(Features([table]), trials_of(numbers[:30]), logs_of(table, numbers[:30], np.zeros(31)))
        alone = [model.mean(0, row[None])[0] for row in numbers]
        assert model.mean(0, numbers).tolist() == alone

    def test_trials_of_several_tables_are_joined_in_their_order(self) -> None:
        draw = np.random.default_rng(5)
        tables = [table_of(4, draw, kinds=2) for _ in range(3)]
        features = Features(tables)
        mixed = [(int(draw.integers(3)), row) for row in policies(tables[0], 20, draw)]
        for kind in range(len(features.kinds)):
            joined = features.joined(mixed, kind)
            for i, (table, row) in enumerate(mixed):
                one = features.terms(table, row[None], kind)
                assert joined.logs[i].tolist() == one.logs[0].tolist()
                assert joined.choices[i].tolist() == one.choices[0].tolist()


class TestKinds:
    @pytest.mark.parametrize("right", [0, 1, 2])
    def test_the_sensitivity_that_explains_the_trials_is_taken(self, right: int) -> None:
        draw = np.random.default_rng(7)
        table = table_of(8, draw, kinds=3)
        mixed = [
            SiteTable(
                s.name,
                s.points,
                s.bytes,
                np.stack(
                    [s.losses[:, k] if k == right else s.losses[draw.permutation(6), k] for k in range(3)], axis=1
                ),
            )
            for s in table.sites
        ]
        numbers = policies(table, 40, draw)
        logs = logs_of(table, numbers, np.zeros(8), kind=right) + draw.normal(0, 0.05, 40)
        model = learn(Features([Table(tuple(mixed))]), trials_of(numbers), logs)
        assert model.kind == 2 + right  # 0 is the mean, 1 the rule of thumb

    def test_where_all_are_wrong_the_rule_of_thumb_is_taken(self) -> None:
        draw = np.random.default_rng(8)
        table = table_of(8, draw, kinds=2)
        wrong = tuple(SiteTable(s.name, s.points, s.bytes, s.losses[draw.permutation(6)]) for s in table.sites)
        numbers = policies(table, 40, draw)
        plain = np.array([3 * 4.0**-b for b in (2, 3, 4, 5, 6, 8)])
        logs = np.log(plain[numbers].sum(axis=1))
        assert learn(Features([Table(wrong)]), trials_of(numbers), logs).kind == 1

    def test_kinds_need_no_common_scale(self) -> None:
        draw = np.random.default_rng(9)
        table = table_of(5, draw, kinds=2)
        scaled = tuple(SiteTable(s.name, s.points, s.bytes, s.losses * [1e6, 1.0]) for s in table.sites)
        models = [unlearned(Features([t])) for t in (table, Table(scaled))]
        for one, other in zip(*(model.costs(0, model.weights()) for model in models), strict=True):
            np.testing.assert_allclose(one, other)
        means = [Features([t]).kinds[0][0] for t in (table, Table(scaled))]
        for a, b in zip(*means, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-9)

    def test_what_is_not_known_is_made_of_the_other_kinds(self) -> None:
        losses = np.array([[0.4, np.nan, 0.8], [0.1, np.nan, 0.2], [0.02, np.nan, np.nan]])
        own = (site("a", losses, (2, 4, 8)), site("b", np.full((3, 3), np.nan), (2, 4, 8)))
        features = Features([Table(own)])
        assert all(np.isfinite(part).all() for kind in features.kinds for parts in kind for part in parts)
        last = features.kinds[-1][0][0]
        assert last[0] - last[1] == pytest.approx(np.log(4))
        np.testing.assert_allclose(np.diff(features.kinds[2][0][0]), np.diff(np.log(losses[:, 0])))


class TestSettings:
    def tables(self, draw: np.random.Generator) -> list[Table]:
        whole = table_of(4, draw)
        cut = tuple(SiteTable(s.name, s.points, s.bytes // 2, s.losses) for s in whole.sites[:3])
        return [Table(whole.sites, {"c": 0.0}, 100), Table(cut, {"c": 0.5}, 100, 0.05)]

    def test_sites_that_are_in_two_learn_from_both(self) -> None:
        draw = np.random.default_rng(3)
        tables = self.tables(draw)
        hidden = np.array([1.5, -1.0, 0.5, 0.0])
        numbers = policies(tables[0], 60, draw)
        model = learn(Features(tables), trials_of(numbers), logs_of(tables[0], numbers, hidden))
        fresh = policies(tables[1], 100, draw)
        truth = np.log(np.exp(logs_of(tables[1], fresh, hidden)) + 0.05)
        begun = unlearned(Features(tables)).predict(1, fresh)[0]
        assert np.corrcoef(model.predict(1, fresh)[0], truth)[0, 1] > np.corrcoef(begun, truth)[0, 1]

    def test_what_a_setting_costs_is_learned(self) -> None:
        draw = np.random.default_rng(4)
        tables = self.tables(draw)
        numbers = policies(tables[1], 40, draw)
        terms = np.exp(logs_of(tables[1], numbers, np.zeros(4)))
        whole = policies(tables[0], 40, draw)
        logs = np.concatenate(
            [np.log(terms + 0.3), logs_of(tables[0], whole, np.zeros(4))]
        )  # it was thought to be 0.05
        model = learn(Features(tables), [*trials_of(numbers, 1), *trials_of(whole)], logs)
        found = np.exp(model.predict(1, numbers)[0])
        assert np.median(np.abs(np.log(found / (terms + 0.3)))) < 0.15

    def test_before_any_trial_it_is_the_last_kind_as_it_is(self) -> None:
        draw = np.random.default_rng(6)
        table = table_of(3, draw, kinds=2)
        model = unlearned(Features([table]))
        for own, one in zip(model.costs(0, model.weights()), table.sites, strict=True):
            np.testing.assert_allclose(own, one.losses[:, 1])
        numbers = policies(table, 20, draw)
        mean, spread = model.predict(0, numbers)
        np.testing.assert_allclose(mean, logs_of(table, numbers, np.zeros(3), kind=1))
        assert (spread > 0.3).all()

    def test_there_are_few_functions_of_a_site(self) -> None:
        features = Features([table_of(3, np.random.default_rng(0))])
        assert all(features.smooth(i).shape == (6, RANK) for i in range(3))
        assert features.smooth(3).shape == (1, 1)


@pytest.mark.parametrize("unknown", [float("nan"), float("inf"), -1.0])
def test_a_setting_whose_loss_is_not_known_is_not_free(unknown: float) -> None:
    own = tuple(site(name, np.array([[0.4], [0.1], [0.02]]), (2, 4, 8)) for name in "abc")
    settings = [Table(own), Table(own, {"c": 0.2}, loss=0.3), Table(own, {"c": 0.5}, loss=unknown)]
    features = Features(settings)
    none = np.zeros((1, 3), np.int64)
    logs = [float(features.terms(i, none, 0).logs[0, -1]) for i in range(3)]
    assert logs == [-np.inf, pytest.approx(np.log(0.3)), pytest.approx(np.log(0.3))]
    alone = Features([Table(own), Table(own, {"c": 0.5}, loss=unknown)])
    assert np.isfinite(alone.terms(1, none, 0).logs[0, -1])
