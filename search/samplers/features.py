"""What is known of sites before any trial: sensitivities as logs, and smooth functions over choices."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from search.samplers.one_thread import one_thread
from search.samplers.table import SiteTable, Table, log_losses

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

RANK = 6  # smooth functions over a site's choices


@dataclass(frozen=True, eq=False)
class Terms:
    """Policies as the model sees them.

    Attributes:
        logs: log sensitivity of each site's choice, (policies, sites); -inf where a site is gone.
        choices: their numbers, int64 (policies, sites).
    """

    logs: Floats
    choices: Ints


class Features:
    """What is known of the sites of all tables before any trial.

    Args:
        tables: the settings.

    Attributes:
        sites: how many there are; the last one is the setting.
        kinds: log sensitivities of the choices, of each kind, table and site.
        site_of: the site of each weight of theta: a site has one for itself, and one for each smooth function.
        starts: the first weight of each site.
    """

    @one_thread
    def __init__(self, tables: Sequence[Table]) -> None:
        self.tables = tables
        self._at = {name: i for i, name in enumerate(dict.fromkeys(s.name for t in tables for s in t.sites))}
        self.sites = len(self._at) + 1
        self._smooth: dict[int, Floats] = {}
        logs = [[_with_rule(site) for site in table.sites] for table in tables]
        count = logs[0][0].shape[1] if logs and logs[0] else 0
        scale = _scales([part for own in logs for part in own], count)
        self.kinds = [[[_filled(part - scale, kind) for part in own] for own in logs] for kind in range(-1, count)]
        for table in tables:
            for site in table.sites:
                self._smooth.setdefault(self._at[site.name], _smooth(site))
        self._settings = self._setting_logs()
        widths = [1 + self.smooth(site).shape[1] for site in range(self.sites)]
        self.site_of = np.repeat(np.arange(self.sites), widths)
        self.starts = np.concatenate(([0], np.cumsum(widths)[:-1]))

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

    def joined(self, trials: Sequence[tuple[int, Ints]], kind: int) -> Terms:
        """Policies of any tables: the table of each, and its choices' numbers, (sites of the table,)."""
        logs, choices = np.empty((len(trials), self.sites)), np.empty((len(trials), self.sites), np.int64)
        for table in {table for table, _ in trials}:
            own = [i for i, one in enumerate(trials) if one[0] == table]
            terms = self.terms(table, np.stack([trials[i][1] for i in own]), kind)
            logs[own], choices[own] = terms.logs, terms.choices
        return Terms(logs, choices)

    def functions(self, choices: Ints) -> Floats:
        """What a weight of theta counts at each site's choice, (policies, weights); `choices` as `Terms` has them."""
        found = np.ones((len(choices), len(self.site_of)))
        for site, start in enumerate(self.starts):
            smooth = self.smooth(site)
            found[:, start + 1 : start + 1 + smooth.shape[1]] = smooth[choices[:, site]]
        return found

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
