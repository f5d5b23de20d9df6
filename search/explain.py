"""Why each site of a policy got its choice: what that saves, what it is predicted to cost, and what others would."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from search.config import storage_url
from search.export import finished, policy_file, select
from search.front import read_front
from search.storage import Storage, open_storage
from search.storage.reading import read_attrs
from search.stored import StoredStudy, pick_study, space_of_study
from spaces.errors import ConfigError, StudyError
from spaces.policy import Choice, Policy, PolicyFile, read_policy
from spaces.site_space import SiteSpace
from spaces.space import TRAINED, Space

BY = ("kl", "gradient", "fisher", "output")  # by which sensitivity choices are compared: the first that is known
MEANINGS = {
    "kl": "measured KL divergence (squared error for values) to the float model's outputs, this site alone changed",
    "gradient": "squared gradients at the site's output times squared changes of the output",
    "fisher": "Fisher diagonal times squared changes of the weights",
    "output": "squared error of the site's output, as a share of the output's square",
}


@dataclass(frozen=True)
class Option:
    """A choice at a site: its label, its bytes before training, and its predicted losses; None where not known."""

    choice: str
    bytes: int
    losses: Mapping[str, float | None]


@dataclass(frozen=True)
class SiteReason:
    """Why a site got its choice.

    Attributes:
        site: its name.
        options: all its choices, in the order of the space.
        chosen: which of them it got.
        smaller: the next smaller one of those that no other one is predicted to beat; None if there is none.
        larger: the next larger one of those.
        better: one of no more bytes and less predicted loss; None if there is none.
        float_bytes: of its float32 weights; None where the study does not say.
    """

    site: str
    options: tuple[Option, ...]
    chosen: int
    smaller: int | None
    larger: int | None
    better: int | None
    float_bytes: int | None

    @property
    def option(self) -> Option:
        """The choice that it got."""
        return self.options[self.chosen]

    @property
    def saved(self) -> int | None:
        """Bytes less than float32."""
        return None if self.float_bytes is None else self.float_bytes - self.option.bytes

    def document(self) -> dict[str, Any]:
        """It as JSON values."""
        others = {"smaller": self.smaller, "larger": self.larger, "better": self.better}
        return {
            "site": self.site,
            **asdict(self.option),
            "saved": self.saved,
            **{name: None if at is None else asdict(self.options[at]) for name, at in others.items()},
        }


@dataclass(frozen=True)
class Explanation:
    """Why the sites of a trial's policy got their choices.

    Attributes:
        study, trial: whose policy it is.
        bytes, accuracy, rung: what the trial scored.
        kinds: the sensitivities that are known.
        by: the one that choices are compared by.
        fixed: axes of the setting that the sensitivities were computed in.
        loss: what the setting costs by itself; None where not measured.
        exact: that setting is the policy's; else the nearest one that was looked at.
        forwards, backwards: samples that all sensitivities of the study took.
        sites: in model order.
    """

    study: str
    trial: int
    bytes: int
    accuracy: float
    rung: int
    kinds: tuple[str, ...]
    by: str
    fixed: Mapping[str, Any]
    loss: float | None
    exact: bool
    forwards: int
    backwards: int
    sites: tuple[SiteReason, ...]

    def document(self) -> dict[str, Any]:
        """It as JSON values: what `slimfront explain --json` prints."""
        named = {name: getattr(self, name) for name in ("study", "trial", "bytes", "accuracy", "rung", "by")}
        setting = {"fixed": dict(self.fixed), "loss": self.loss, "exact": self.exact}
        spent = {"forwards": self.forwards, "backwards": self.backwards}
        sites = [site.document() for site in self.sites]
        return {**named, "kinds": list(self.kinds), "setting": setting, **spent, "sites": sites}


def explain(
    study: str | None = None, storage: str | None = None, *, trial: int | None = None, by: str | None = None
) -> Explanation:
    """Why the sites of a trial's policy got their choices.

    Args:
        study: its name; None is the only study of the store.
        storage: URL of the store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.
        trial: number of a finished trial, stopped early or not; None is the knee.
        by: the sensitivity that choices are compared by; None is the first of `BY` that is known everywhere.

    Raises:
        ConfigError: there is no such store or sensitivity.
        StudyError: there is no such study, or it holds no sensitivities.
        SelectionError: there is no such finished trial.
    """
    store = open_storage(storage_url(storage), create=False)
    try:
        found = pick_study(store, study)
        front = read_front(store, found, also=() if trial is None else (trial,))
        point = select(front) if trial is None else finished(front, trial)
        return _explained(store, found, policy_file(store, found, point), by)
    finally:
        store.close()


def explain_policy(path: Path, storage: str | None = None, *, by: str | None = None) -> Explanation:
    """Why the sites of an exported policy got their choices: what the study it came from says.

    Args:
        path: of the policy JSON.
        storage: URL of that study's store; None is $SLIMFRONT_STORAGE, else sqlite:///slimfront.db.
        by: as in `explain`.

    Raises:
        ConfigError: the policy cannot be read, or there is no such sensitivity.
        StudyError: the store does not hold the study and trial that the policy names, or no sensitivities.
    """
    policy = read_policy(path)
    source = policy.provenance
    where = f"{path} is trial {source.trial} of study {source.study!r}"
    try:
        store = open_storage(storage_url(storage), create=False)
    except StudyError as error:
        raise StudyError(f"{where}; name the store of its search with --storage: {error}") from error
    try:
        return _explained(store, _study_of(store, policy, where), policy, by)
    finally:
        store.close()


def _study_of(store: Storage, policy: PolicyFile, where: str) -> StoredStudy:
    source = policy.provenance
    try:
        found = pick_study(store, source.study)
        attrs = store.run(
            f"reading trial {source.trial}",
            lambda connection: read_attrs(connection, found.id, [source.trial])[source.trial],
            write=False,
        )
    except StudyError as error:
        raise StudyError(f"{where}; name the store of its search with --storage: {error}") from error
    if not attrs:
        raise StudyError(f"{where}; name the store of its search with --storage: the study there has no such trial")
    if attrs.get("digest") != policy.policy.digest:
        raise StudyError(
            f"{where}, but that trial has another policy in this store: name the store of its search with --storage"
        )
    return found


def _explained(storage: Storage, study: StoredStudy, policy: PolicyFile, by: str | None) -> Explanation:
    space, known = space_of_study(storage, study), storage.load_document(study.id, "sensitivities")
    if known is None:
        raise StudyError(
            f"study {study.name!r} holds no sensitivities: they are computed before the first trial; search again "
            "under another name (key study)"
        )
    try:
        kinds = tuple(map(str, known["kinds"]))
        setting, exact = _setting_of(space, policy.policy, known["settings"])
        places = _places(space, policy.model)
        options = {name: _options(places[name], setting["sites"][name], kinds) for name in policy.sites}
        used = _by(by, kinds, options)
        reasons = [
            _reason(place, options[name], policy.sites[name], setting["sites"][name].get("float32"), used)
            for name, place in places.items()
            if name in policy.sites
        ]
        return Explanation(
            study=study.name,
            trial=policy.provenance.trial,
            bytes=policy.score.bytes,
            accuracy=policy.score.accuracy,
            rung=policy.score.rung,
            kinds=kinds,
            by=used,
            fixed=setting["fixed"],
            loss=setting["loss"],
            exact=exact,
            forwards=int(known["forwards"]),
            backwards=int(known["backwards"]),
            sites=tuple(reasons),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise StudyError(
            f"study {study.name!r}: its sensitivities do not fit its space ({type(error).__name__}: {error}): it was "
            "made by another version of Slimfront; search again under another name"
        ) from error


def _setting_of(space: Space, policy: Policy, settings: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any], bool]:
    """The setting of a policy, and whether it is that; else the one that differs in the fewest axes."""
    params = space.params(policy)
    model = params.get("model", TRAINED)
    able = [
        one
        for one in settings
        if one["fixed"].get("model", TRAINED) == model and not policy.sites.keys() - one["sites"].keys()
    ]
    for one in able:
        if space.policy({**params, **one["fixed"]}) == policy:
            return one, True
    return min(able, key=lambda one: sum(params[name] != value for name, value in one["fixed"].items())), False


def _places(space: Space, model: str | None) -> dict[str, SiteSpace]:
    sites = space.sites if model is None else next(one.sites for one in space.students if one.name == model)
    return {site.name: site for site in sites}


def _options(place: SiteSpace, known: Mapping[str, Any], kinds: Sequence[str]) -> tuple[Option, ...]:
    choices = place.choices()
    columns = [known["bytes"], *(known[kind] for kind in kinds)]
    if any(len(column) != len(choices) for column in columns):
        raise ValueError(f"site {place.name} has {len(choices)} choices")
    return tuple(
        Option(choice.label, int(size), dict(zip(kinds, losses, strict=True)))
        for choice, size, *losses in zip(choices, *columns, strict=True)
    )


def _by(wished: str | None, kinds: Sequence[str], options: Mapping[str, Sequence[Option]]) -> str:
    """The sensitivity to compare by.

    Raises:
        ConfigError: the study does not have the one that is wished for.
    """
    every = [one for own in options.values() for one in own]
    known = [kind for kind in kinds if any(one.losses[kind] is not None for one in every)]
    if wished is not None and wished not in known:
        raise ConfigError(f"--by: given {wished}, known in this study: {', '.join(known) or 'none'}")
    whole = [kind for kind in known if all(one.losses[kind] is not None for one in every)]
    return wished or next((kind for kind in BY if kind in whole), kinds[0])


def _reason(
    place: SiteSpace, options: tuple[Option, ...], choice: Choice, float_bytes: int | None, by: str
) -> SiteReason:
    chosen = place.choices().index(choice)
    size, loss = options[chosen].bytes, options[chosen].losses[by]
    best = efficient(options, by)
    no_larger = [(i, other) for i, other in best if options[i].bytes <= size]
    plain = next((one.bytes for one in options if one.choice == "float32"), None)
    return SiteReason(
        site=place.name,
        options=options,
        chosen=chosen,
        smaller=next((i for i, _ in reversed(best) if options[i].bytes < size), None),
        larger=next((i for i, _ in best if options[i].bytes > size), None),
        better=no_larger[-1][0] if no_larger and loss is not None and no_larger[-1][1] < loss else None,
        float_bytes=plain if float_bytes is None else int(float_bytes),
    )


def efficient(options: Sequence[Option], by: str) -> list[tuple[int, float]]:
    """The choices that no other one beats in bytes and predicted loss, smallest first, with that loss.

    Those whose loss is not known are left out.
    """
    found: list[tuple[int, float]] = []
    known = [(one.bytes, loss, i) for i, one in enumerate(options) if (loss := one.losses[by]) is not None]
    for _, loss, i in sorted(known):
        if not found or loss < found[-1][1]:
            found.append((i, loss))
    return found
