"""The candidates that are tried first: uniform policies, and those of the predicted front."""

import random
from collections.abc import Sequence

import numpy as np

from objectives.seeds import seed_of
from search.config import Config
from search.samplers.features import Features
from search.samplers.loss_model import LossModel, unlearned
from search.samplers.table import Table
from search.sensitivity import predicted_front, spread
from search.settings import Priced, Setting
from search.study import Origin
from spaces.policy import Choice, Policy
from spaces.space import Space

NOTHING = 1e-3  # predicted KL (nats) of a policy that is as good as the float model: no larger one is looked at
SOME = 0.1  # predicted KL from which on accuracy is lost


def uniform(config: Config, space: Space, priced: Sequence[Priced]) -> list[tuple[Origin, Policy]]:
    """As many uniform policies as the config says: unpruned ones first, the others spread evenly over log bytes.

    Half of them, at most, are those of the widest weights in the other settings: fewer channels, smaller models.
    """
    found = space.uniform()
    whole = priced[0]
    by_site = {
        site.name: dict(zip(site.choices(), own, strict=True))
        for site, own in zip(space.sites, whole.costs, strict=True)
    }
    size = [np.log(sum(by_site[name][choice].bytes for name, choice in sites.items())) for sites in found]
    others = [_widest(one.setting) for one in priced[1:]][: config.sampler.uniform // 2]
    count = config.sampler.uniform - len(others)
    plain = [i for i, sites in enumerate(found) if not any(choice.ratio for choice in sites.values())]
    taken = plain[:count]
    rest = [i for i in range(len(found)) if i not in taken]
    while rest and len(taken) < count:  # the one farthest in size from those taken
        farthest = max(rest, key=lambda i: (min((abs(size[i] - size[j]) for j in taken), default=0.0), -i))
        taken.append(farthest)
        rest.remove(farthest)
    distillation = config.distillation
    temperature = float(np.sqrt(distillation.temperature[0] * distillation.temperature[1]))
    alpha = sum(distillation.alpha) / 2
    policies = [space.make(found[i], temperature, alpha) for i in taken]
    policies += [
        space.make(sites, temperature, alpha, model=setting.model, channels=setting.channels, dropped=setting.dropped)
        for setting, sites in others
    ]
    return [("uniform", policy) for policy in policies]


def _widest(setting: Setting) -> tuple[Setting, dict[str, Choice]]:
    return setting, {site.name: site.nearest(site.kinds[0], 0.0, 32) for site in setting.sites}


def predicted(
    config: Config, space: Space, priced: Sequence[Priced], tables: Sequence[Table], span: tuple[float, float]
) -> list[tuple[Origin, Policy]]:
    """Policies of the predicted front at random temperatures, spread evenly along it.

    They have sizes in `span` (bytes), or the nearest to it where no file is that small. Half of them are of the whole
    model, the others of the other settings in turn.
    """
    model = unlearned(Features(tables))
    count = config.sampler.predicted
    share = [count] if len(priced) == 1 else [count - count // 2]
    share += [count // 2 // (len(priced) - 1) + (i < count // 2 % (len(priced) - 1)) for i in range(len(priced) - 1)]
    found: list[tuple[Origin, Policy]] = []
    for number, (one, wished) in enumerate(zip(priced, share, strict=True)):
        for sites in _front(one.setting, tables[number], model, number, wished, span):
            draw = random.Random(seed_of(config.seed, f"predicted {len(found)}"))  # noqa: S311 - not for secrets
            low, high = config.distillation.temperature
            temperature = float(min(high, max(low, low * (high / low) ** draw.random())))
            alpha = draw.uniform(*config.distillation.alpha)
            setting = one.setting
            policy = space.make(
                sites, temperature, alpha, model=setting.model, channels=setting.channels, dropped=setting.dropped
            )
            found.append(("predicted", policy))
    return found


def _front(
    setting: Setting, table: Table, model: LossModel, number: int, count: int, span: tuple[float, float]
) -> list[dict[str, Choice]]:
    """Choices of up to `count` policies along the predicted front of a setting."""
    costs = model.costs(number, model.weights())
    total, losses, chosen = predicted_front([site.bytes for site in table.sites], costs)
    files = total + table.rest
    low = min(int(np.searchsorted(files, span[0])), len(files) - 1)
    largest = span[1] if span[1] > files[low] else float(files[-1])
    enough = int(np.argmax(losses < NOTHING)) if losses[-1] < NOTHING else len(losses) - 1
    largest = min(largest, float(files[max(enough, low)]))
    return [
        {site.name: site.choices()[i] for site, i in zip(setting.sites, chosen[low + state], strict=True)}
        for state in spread(files[low:], np.log1p(losses[low:] / SOME), count, largest)
    ]
