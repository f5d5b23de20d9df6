"""Spaces: against enumeration of all their points, and what rules, globs and targets leave of them."""

import itertools
import json
import random
from dataclasses import dataclass, replace
from typing import Any

import pytest

from spaces.errors import ConfigError
from spaces.policy import (
    Choice,
    Distillation,
    Float16,
    Float32,
    NoPruning,
    Policy,
    Prune,
    Uniform,
    Unstructured,
    Weights,
)
from spaces.space import Grid, Options, Range, SiteSpace, Space, build_space
from spaces.target import STORAGE, TARGETS, Target

NAMES = ["stem", "body.0", "body.1", "head"]


@dataclass(frozen=True)
class SiteRule:
    sites: str
    bits: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    weights: tuple[str, ...] | None = None


def build(names: list[str] = NAMES, **changed: Any) -> Space:
    settings: dict[str, Any] = {
        "bits": (2, 4, 8),
        "ratios": (0.0, 0.5),
        "prune": ("none", "unstructured"),
        "weights": ("uniform",),
    }
    return build_space(names, **settings | changed)


SPACES = {
    "plain": build(["stem", "head"]),
    "all kinds": build(["stem", "head"], weights=("uniform", "float16", "float32")),
    "single values": build(bits=(4,), ratios=(0.5,)),
    "excluded": build(exclude=["stem", "head"], weights=("float16", "uniform")),
    "rules": build(["stem", "head"], rules=[SiteRule("h*", bits=(3,), ratios=(0.0, 0.25, 0.75), weights=("float16",))]),
    "distilled": build(["stem"], temperature=(1.0, 8.0), alpha=(0.0, 1.0), learning_rate=0.01, batch_size=16),
    "distilled at a point": build(["stem"], temperature=(4.0, 4.0), alpha=(0.5, 0.5)),
    "one temperature": build(["stem"], temperature=(4.0, 4.0), alpha=(0.25, 0.75)),
}
spaces = pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)


def random_point(space: Space, draw: random.Random) -> dict[str, Any]:
    return {
        axis.name: draw.uniform(axis.low, axis.high) if isinstance(axis, Range) else draw.choice(axis.values)
        for axis in space.axes()
    }


class TestPoints:
    @spaces
    def test_its_size_is_what_enumeration_of_the_axes_finds(self, space: Space) -> None:
        steps = [(axis.low,) if isinstance(axis, Range) else axis.values for axis in space.axes()]
        names = [axis.name for axis in space.axes()]
        found = {space.policy(dict(zip(names, at, strict=True))).digest for at in itertools.product(*steps)}
        assert len(found) == space.size()

    @spaces
    def test_its_choices_are_those_of_its_policies(self, space: Space) -> None:
        draw = random.Random(0)
        seen: dict[str, set[Choice]] = {site.name: set() for site in space.sites}
        for _ in range(400):
            for name, choice in space.policy(random_point(space, draw)).sites.items():
                seen[name].add(choice)
        assert seen == {site.name: set(site.choices()) for site in space.sites}
        assert all(len(site.choices()) == len(set(site.choices())) for site in space.sites)

    @spaces
    @pytest.mark.parametrize("seed", range(10))
    def test_a_policy_comes_back_from_its_point(self, space: Space, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(20):
            policy = space.policy(random_point(space, draw))
            point = space.params(policy)
            assert point.keys() == {axis.name for axis in space.axes()}
            assert space.policy(point) == policy
            assert space.policy(json.loads(json.dumps(point))) == policy

    def test_a_step_that_was_added_up_is_the_number_on_the_grid(self) -> None:
        space = build(["a"], ratios=(0.0, 0.1, 0.2, 0.3), bits=(4,))
        assert space.policy({"a/ratio": 0.1 + 0.2}).sites["a"].ratio == 0.3

    def test_what_has_one_value_is_no_axis(self) -> None:
        assert SPACES["single values"].axes() == ()
        assert SPACES["distilled at a point"].axes() == build(["stem"]).axes()
        assert SPACES["all kinds"].axes() == (
            Options("stem/kind", ("uniform", "float16", "float32")),
            Grid("stem/ratio", (0.0, 0.5)),
            Grid("stem/bits", (2, 4, 8)),
            Options("head/kind", ("uniform", "float16", "float32")),
            Grid("head/ratio", (0.0, 0.5)),
            Grid("head/bits", (2, 4, 8)),
        )
        assert SPACES["distilled"].axes()[-2:] == (Range("temperature", 1, 8, log=True), Range("alpha", 0, 1))

    def test_distillation_has_the_settings_of_the_space(self) -> None:
        policy = SPACES["distilled"].policy({"stem/ratio": 0.0, "stem/bits": 4, "temperature": 3, "alpha": 0.5})
        assert policy.distillation == Distillation(temperature=3, alpha=0.5, learning_rate=0.01, batch_size=16)
        fixed = SPACES["distilled at a point"].policy({"stem/ratio": 0.0, "stem/bits": 4}).distillation
        assert fixed is not None
        assert (fixed.temperature, fixed.alpha) == (4.0, 0.5)
        assert SPACES["plain"].with_distillation({}, 4.0, 0.5).distillation is None

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"stem/ratio": 0.4}, "stem/ratio: 0.4 is not among"),
            ({"stem/ratio": float("nan")}, "stem/ratio: nan is not among"),
            ({"stem/ratio": float("inf")}, "stem/ratio: inf is not among"),
            ({"stem/bits": 3}, "stem/bits: 3 is not among"),
            ({"stem/kind": "codebook"}, "stem/kind: 'codebook' is not among"),
            ({"temperature": 0.99}, "temperature: 0.99 is not in 1.0 to 8.0"),
            ({"temperature": float("nan")}, "temperature: nan is not in"),
            ({"alpha": 1.01}, "alpha: 1.01 is not in"),
            ({"surprise": 1}, r"unknown axes \['surprise'\]"),
        ],
    )
    def test_a_point_off_the_axes_is_refused(self, changed: dict[str, Any], match: str) -> None:
        space = replace(SPACES["distilled"], sites=SPACES["all kinds"].sites[:1])
        point = random_point(space, random.Random(0))
        assert space.policy(point).sites.keys() == {"stem"}
        with pytest.raises(ValueError, match=match):
            space.policy(point | changed)

    @pytest.mark.parametrize("name", ["stem/ratio", "stem/bits", "temperature", "alpha"])
    def test_a_point_without_an_axis_is_refused(self, name: str) -> None:
        point = random_point(SPACES["distilled"], random.Random(0))
        del point[name]
        with pytest.raises(ValueError, match=rf"missing axes \['{name}'\]"):
            SPACES["distilled"].policy(point)

    def test_a_policy_of_another_space_has_no_point(self) -> None:
        space = SPACES["distilled"]
        inside = space.policy(random_point(space, random.Random(0)))
        choice, settings = inside.sites["stem"], inside.distillation
        assert settings is not None
        hotter = settings.model_copy(update={"temperature": 9.0})
        slower = settings.model_copy(update={"learning_rate": 0.5})
        for other in (
            Policy(sites={}, distillation=settings),
            Policy(sites={"stem": Choice(weights=Uniform(bits=3))}, distillation=settings),
            Policy(sites={"stem": Choice(prune=Unstructured(ratio=0.51))}, distillation=settings),
            Policy(sites={"stem": choice, "other": choice}, distillation=settings),
            Policy(sites={"stem": choice}),
            Policy(sites={"stem": choice}, distillation=hotter),
            Policy(sites={"stem": choice}, distillation=slower),
        ):
            with pytest.raises(ValueError, match=r"site|distillation|temperature"):
                space.params(other)


class TestUniform:
    def test_it_is_the_same_choice_everywhere_unpruned_first_and_wide_to_narrow(self) -> None:
        space = build(bits=(2, 8), weights=("float16", "uniform", "float32"))
        kinds: list[Weights] = [Float32(), Float16(), Uniform(bits=8), Uniform(bits=2)]
        cuts: list[Prune] = [NoPruning(), Unstructured(ratio=0.5)]
        expected = [Choice(prune=prune, weights=weights) for prune in cuts for weights in kinds]
        assert space.uniform() == [dict.fromkeys(NAMES, choice) for choice in expected]

    @spaces
    def test_all_are_allowed_and_different(self, space: Space) -> None:
        found = space.uniform()
        allowed = {site.name: site.choices() for site in space.sites}
        assert all(choice in allowed[name] for sites in found for name, choice in sites.items())
        assert all(sites.keys() == allowed.keys() for sites in found)
        assert len({Policy(sites=sites).digest for sites in found}) == len(found)

    @spaces
    def test_each_wish_of_each_site_is_granted_somewhere(self, space: Space) -> None:
        granted = {(name, choice) for sites in space.uniform() for name, choice in sites.items()}
        assert granted == {(site.name, choice) for site in space.sites for choice in site.choices()}

    def test_a_site_that_cannot_takes_what_is_nearest_and_of_two_as_near_the_smaller(self) -> None:
        space = build(["a", "b"], ratios=(0.0,), rules=[SiteRule("b", bits=(3, 5), ratios=(0.0, 0.75))])
        widths = [tuple(one.weights for one in sites.values()) for sites in space.uniform()]
        pairs = [(8, 5), (4, 5), (4, 3), (2, 3)]  # wishes for 8; for 5; for 4 and 3; for 2
        assert list(dict.fromkeys(widths)) == [(Uniform(bits=a), Uniform(bits=b)) for a, b in pairs]
        site = SiteSpace("a", ("float16", "uniform"), (0.0, 0.5, 1 - 2**-4), (3, 5))
        assert site.nearest("uniform", 0.25, 4) == Choice(weights=Uniform(bits=3))
        assert site.nearest("uniform", 0.99, 8) == Choice(prune=Unstructured(ratio=1 - 2**-4), weights=Uniform(bits=5))
        assert site.nearest("float32", 0.5, 32) == Choice(prune=Unstructured(ratio=0.5), weights=Float16())

    def test_excluded_sites_stay_as_they_are(self) -> None:
        assert all(sites["stem"] == Choice() for sites in build(exclude=["stem"]).uniform())


class TestBuild:
    def test_sites_are_in_model_order(self) -> None:
        assert [site.name for site in build().sites] == NAMES

    def test_values_are_sorted_and_each_once(self) -> None:
        site = build(["a"], bits=(8, 2, 2), ratios=(0.5, 0.0, 0.5), weights=("uniform", "float16", "uniform")).sites[0]
        assert site == SiteSpace("a", ("uniform", "float16"), (0.0, 0.5), (2, 8))

    def test_a_later_rule_wins_key_by_key_and_exclude_wins_over_all(self) -> None:
        rules = [SiteRule("body.*", bits=(3,), ratios=(0.25,)), SiteRule("*.1", bits=(5, 6))]
        space = build(rules=rules, exclude=["head"])
        assert space.sites == (
            SiteSpace("stem", ("uniform",), (0.0, 0.5), (2, 4, 8)),
            SiteSpace("body.0", ("uniform",), (0.25,), (3,)),
            SiteSpace("body.1", ("uniform",), (0.25,), (5, 6)),
            SiteSpace("head", ("float32",), (0.0,), ()),
        )
        assert build(rules=[SiteRule("*", bits=(3,))], exclude=["*"]).size() == 1

    @pytest.mark.parametrize(
        ("changed", "where"),
        [
            ({"exclude": ["stem", "Head"]}, r"space\.exclude\[1\]: given 'Head'"),
            ({"rules": [SiteRule("tail*")]}, r"space\.rules\[0\]\.sites: given 'tail\*'"),
        ],
    )
    def test_a_glob_that_matches_no_site_is_an_error_that_lists_them(self, changed: Any, where: str) -> None:
        with pytest.raises(ConfigError, match=where + ", which matches no site; the sites are stem, body.0, body.1, h"):
            build(**changed)

    @pytest.mark.parametrize(
        "changed",
        [{"ratios": (0.5,), "prune": ("none",)}, {"bits": (16,)}, {"weights": ("codebook",)}, {"ratios": ()}],
    )
    def test_a_site_without_a_choice_is_an_error_that_names_it(self, changed: Any) -> None:
        with pytest.raises(ConfigError, match="site stem has no choice left"):
            build(**changed)

    def test_a_target_leaves_what_can_run_there(self) -> None:
        narrow = Target("storage", frozenset({"none"}), frozenset({"uniform"}), frozenset({8}))
        site = build(["a"], target=narrow, weights=("float16", "uniform")).sites[0]
        assert site == SiteSpace("a", ("uniform",), (0.0,), (8,))
        with pytest.raises(ConfigError, match="site a has no choice left"):
            build(["a"], target=narrow, exclude=["a"])  # never float32 in silence where float32 cannot run

    def test_storage_takes_everything(self) -> None:
        assert TARGETS == {"storage": STORAGE}
        full = build(["a"], bits=range(2, 9), weights=("uniform", "float16", "float32"))
        assert full.size() == (7 + 1 + 1) * 2

    @pytest.mark.parametrize("kind", ["uniform", "codebook"])
    def test_a_choice_that_is_incomplete_or_unknown_is_refused(self, kind: str) -> None:
        with pytest.raises(ValueError, match="site a"):
            build(["a"]).sites[0].choice(kind, 0.0, None)


class TestDocument:
    @spaces
    def test_a_space_comes_back_from_its_document(self, space: Space) -> None:
        again = Space.read(json.loads(json.dumps(space.document())))
        assert again == space
        assert again.axes() == space.axes()

    @pytest.mark.parametrize("document", [{}, {"sites": 3}, {"sites": [{"name": "a"}]}])
    def test_what_is_no_document_is_refused(self, document: dict[str, Any]) -> None:
        with pytest.raises((KeyError, TypeError)):
            Space.read(document)
