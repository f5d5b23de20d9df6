"""Spaces: against enumeration of all their points, and policies that are equal where their models are."""

import itertools
import json
import math
import random
from dataclasses import replace
from typing import Any

import pytest

from spaces.choice import (
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Prune,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from spaces.policy import ChannelPruning, Choice, Distillation, Policy
from spaces.space import Block, Grid, GroupSpace, Options, Range, SiteSpace, Space, StudentSpace, Style

SETTINGS = Distillation(temperature=1, alpha=0.5, learning_rate=0.01, batch_size=16)


def site(name: str, **changed: Any) -> SiteSpace:
    settings: dict[str, Any] = {"kinds": ("uniform",), "ratios": (0.0, 0.5), "bits": (2, 4, 8)}
    return SiteSpace(name, **settings | changed)


def sites(*names: str, **changed: Any) -> tuple[SiteSpace, ...]:
    return tuple(site(name, **changed) for name in names)


PLAIN = sites("stem", "head")
ALL_KINDS = ("uniform", "codebook", "float16", "float32")
PATTERNS = (SemiStructured(n=2, m=4), SemiStructured(n=1, m=4), Threshold(value=0.01), Threshold(value=0.010000001))
ACTIVATIONS = (None, StaticActivations(bits=8), StaticActivations(bits=4), DynamicActivations(bits=8))
GROUPS = (GroupSpace("group-stem", (0.0, 0.25, 0.5)), GroupSpace("group-body.0.a", (0.0, 0.5)))
BODY = (*PLAIN, site("body.0.a", bits=(4, 8)), site("body.0.b", bits=(4,)), site("body.1.a", bits=(3,), ratios=(0.0,)))
BLOCKS = (Block("body.0", ("body.0.a", "body.0.b"), ("group-body.0.a",)), Block("body.1", ("body.1.a",)))
STUDENTS = (
    StudentSpace("half", sites("stem", "head", bits=(4, 8))),
    StudentSpace("tiny", sites("all", kinds=("float16", "uniform"), bits=(8,))),
)

SPACES = {
    "plain": Space(PLAIN),
    "all kinds": Space(sites("stem", "head", kinds=ALL_KINDS, bits=(2, 4))),
    "single values": Space(sites("stem", "body", "head", bits=(4,), ratios=(0.5,))),
    "excluded": Space((*PLAIN, site("body", kinds=("float32",), ratios=(0.0,), bits=()))),
    "patterns": Space(sites("stem", "head", patterns=PATTERNS, bits=(4, 8))),
    "only patterns": Space(sites("stem", patterns=PATTERNS[:2], ratios=(), kinds=("float16", "codebook"), bits=(3,))),
    "only one pattern": Space(sites("stem", "head", patterns=PATTERNS[:1], ratios=(), bits=(3, 5))),
    "activations": Space(sites("stem", "head", activations=ACTIVATIONS, bits=(8,))),
    "styled": Space(
        sites("stem", style=Style("hessian", "group", 16, False, "gptq", True), kinds=ALL_KINDS, patterns=PATTERNS[2:])
    ),
    "groups": Space(PLAIN, groups=GROUPS[:1], channel_pruning=ChannelPruning(criterion="l1", multiple=4)),
    "a group with one value": Space(PLAIN, groups=(*GROUPS, GroupSpace("group-rest", (0.0,)))),
    "blocks": Space(BODY, blocks=BLOCKS, groups=GROUPS),
    "students": Space(PLAIN, students=STUDENTS),
    "distilled": Space(PLAIN[:1], temperature=(1.0, 8.0), alpha=(0.0, 1.0), distillation=SETTINGS),
    "distilled at a point": Space(PLAIN[:1], temperature=(4.0, 4.0), alpha=(0.5, 0.5), distillation=SETTINGS),
    "one temperature": Space(PLAIN[:1], temperature=(4.0, 4.0), alpha=(0.25, 0.75), distillation=SETTINGS),
    "smoothed": Space(PLAIN, smoothing=0.5),
    "everything": Space(
        (*sites("stem", patterns=PATTERNS[:1], activations=ACTIVATIONS[:2], bits=(4,)), *BODY[2:]),
        temperature=(1.0, 8.0),
        alpha=(0.0, 1.0),
        distillation=SETTINGS,
        groups=GROUPS,
        blocks=BLOCKS,
        students=STUDENTS[1:],
        smoothing=0.0,
    ),
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
        assert math.prod(map(len, steps)) < 20_000
        found = {space.policy(dict(zip(names, at, strict=True))).digest for at in itertools.product(*steps)}
        assert len(found) == space.size()

    @spaces
    def test_its_choices_are_those_of_its_policies(self, space: Space) -> None:
        draw = random.Random(0)
        seen: dict[str, set[Choice]] = {one.name: set() for one in space.sites}
        for _ in range(1000):
            policy = space.policy(random_point(space, draw))
            for name, choice in policy.sites.items() if policy.model is None else ():
                seen[name].add(choice)
        assert seen == {one.name: set(one.choices()) for one in space.sites}

    @spaces
    @pytest.mark.parametrize("seed", range(5))
    def test_a_policy_comes_back_from_its_point(self, space: Space, seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(40):
            policy = space.policy(random_point(space, draw))
            point = space.params(policy)
            assert point.keys() == {axis.name for axis in space.axes()}
            assert space.policy(point) == policy
            assert space.policy(json.loads(json.dumps(point))).digest == policy.digest
            assert space.params(Policy.model_validate_json(policy.model_dump_json())) == point

    def test_a_step_that_was_added_up_is_the_number_on_the_grid(self) -> None:
        space = Space(sites("a", ratios=(0.0, 0.1, 0.2, 0.3), bits=(4,)))
        assert space.policy({"a/ratio": 0.1 + 0.2}).sites["a"].ratio == 0.3

    def test_what_has_one_value_is_no_axis(self) -> None:
        assert SPACES["single values"].axes() == ()
        assert SPACES["distilled at a point"].axes() == Space(PLAIN[:1]).axes()
        assert [axis.name for axis in SPACES["a group with one value"].axes()][-2:] == [
            "group-stem/channels",
            "group-body.0.a/channels",
        ]

    def test_sites_come_first_then_groups_blocks_students_and_distillation(self) -> None:
        kinds, bits, ratio = Options("stem/kind", ALL_KINDS), Grid("stem/bits", (2, 4)), Grid("stem/ratio", (0.0, 0.5))
        assert SPACES["all kinds"].axes()[:3] == (kinds, ratio, bits)
        assert SPACES["everything"].axes() == (
            Options("stem/prune", ("unstructured", "2:4 pruned")),
            Grid("stem/ratio", (0.0, 0.5)),
            Options("stem/activations", ("float", "8-bit static")),
            Grid("body.0.a/ratio", (0.0, 0.5)),
            Grid("body.0.a/bits", (4, 8)),
            Grid("body.0.b/ratio", (0.0, 0.5)),
            Grid("group-stem/channels", (0.0, 0.25, 0.5)),
            Grid("group-body.0.a/channels", (0.0, 0.5)),
            Options("body.0/dropped", ("no", "yes")),
            Options("body.1/dropped", ("no", "yes")),
            Options("model", ("trained", "tiny")),
            Options("tiny:all/kind", ("float16", "uniform")),
            Grid("tiny:all/ratio", (0.0, 0.5)),
            Range("temperature", 1.0, 8.0, log=True),
            Range("alpha", 0.0, 1.0),
        )

    @spaces
    def test_no_two_axes_have_one_name(self, space: Space) -> None:
        names = [axis.name for axis in space.axes()]
        assert len(set(names)) == len(names)
        for axis in space.axes():
            assert isinstance(axis, Range) or len(set(axis.values)) == len(axis.values)

    def test_distillation_has_the_settings_of_the_space(self) -> None:
        policy = SPACES["distilled"].policy({"stem/ratio": 0.0, "stem/bits": 4, "temperature": 3, "alpha": 0.5})
        assert policy.distillation == SETTINGS.model_copy(update={"temperature": 3.0})
        fixed = SPACES["distilled at a point"].policy({"stem/ratio": 0.0, "stem/bits": 4}).distillation
        assert fixed == SETTINGS.model_copy(update={"temperature": 4.0})
        assert SPACES["plain"].make({}, 4.0, 0.5).distillation is None

    @pytest.mark.parametrize(
        ("changed", "match"),
        [
            ({"stem/ratio": 0.4}, "stem/ratio: 0.4 is not among"),
            ({"stem/ratio": float("nan")}, "stem/ratio: nan is not among"),
            ({"stem/ratio": float("inf")}, "stem/ratio: inf is not among"),
            ({"body.0.a/bits": 3}, "body.0.a/bits: 3 is not among"),
            ({"stem/prune": "1:4 pruned"}, "stem/prune: '1:4 pruned' is not among"),
            ({"stem/activations": "8-bit dynamic"}, "stem/activations: '8-bit dynamic' is not among"),
            ({"group-stem/channels": 0.3}, "group-stem/channels: 0.3 is not among"),
            ({"body.0/dropped": True}, "body.0/dropped: True is not among"),
            ({"model": "half"}, "model: 'half' is not among"),
            ({"tiny:all/kind": "codebook"}, "tiny:all/kind: 'codebook' is not among"),
            ({"temperature": 0.99}, "temperature: 0.99 is not in 1.0 to 8.0"),
            ({"temperature": float("nan")}, "temperature: nan is not in"),
            ({"alpha": 1.01}, "alpha: 1.01 is not in"),
            ({"surprise": 1}, r"unknown axes \['surprise'\]"),
        ],
    )
    def test_a_point_off_the_axes_is_refused(self, changed: dict[str, Any], match: str) -> None:
        space = SPACES["everything"]
        point = random_point(space, random.Random(0))
        assert space.policy(point).sites
        with pytest.raises(ValueError, match=match):
            space.policy(point | changed)

    @pytest.mark.parametrize("name", [axis.name for axis in SPACES["everything"].axes()])
    def test_a_point_without_an_axis_is_refused(self, name: str) -> None:
        point = random_point(SPACES["everything"], random.Random(0))
        del point[name]
        with pytest.raises(ValueError, match=rf"missing axes \['{name}'\]"):
            SPACES["everything"].policy(point)

    def test_a_policy_of_another_space_has_no_point(self) -> None:
        space = SPACES["everything"]
        point = {axis.name: "no" if axis.name.endswith("dropped") else None for axis in space.axes()}
        point = {name: value or random_point(space, random.Random(0))[name] for name, value in point.items()}
        inside = space.policy(point | {"model": "trained", "group-stem/channels": 0.5, "body.1/dropped": "yes"})
        student = space.policy(point | {"model": "tiny"})
        choice = inside.sites["stem"]
        changes: list[tuple[Policy, dict[str, Any]]] = [
            (inside, {"sites": {}}),
            (inside, {"sites": inside.sites | {"stem": Choice(weights=Uniform(bits=3))}}),
            (inside, {"sites": inside.sites | {"stem": Choice(prune=Unstructured(ratio=0.51))}}),
            (inside, {"sites": inside.sites | {"other": choice}}),
            (inside, {"sites": inside.sites | {"body.1.a": BODY[-1].choices()[0]}}),  # of a dropped block
            (inside, {"channels": {}}),
            (inside, {"channels": {"group-stem": 0.3}}),
            (inside, {"channels": {"group-stem": 0.0}}),  # what is not removed is not named
            (inside, {"channels": inside.channels | {"group-9": 0.5}}),
            (inside, {"channel_pruning": None}),
            (inside, {"channel_pruning": ChannelPruning(criterion="l1")}),
            (inside, {"dropped": ()}),
            (inside, {"dropped": ("body.1", "body.9")}),
            (inside, {"dropped": ("body.0", "body.1")}),  # with choices for what is gone
            (inside, {"model": "tiny"}),
            (inside, {"model": "other"}),
            (inside, {"smoothing": None}),
            (inside, {"smoothing": 0.5}),
            (inside, {"distillation": None}),
            (inside, {"distillation": SETTINGS.model_copy(update={"temperature": 9.0})}),
            (inside, {"distillation": SETTINGS.model_copy(update={"learning_rate": 0.5})}),
            (inside, {"distillation": SETTINGS.model_copy(update={"masks": "gradual"})}),
            (student, {"model": None}),
            (student, {"dropped": ("body.1",)}),
            (student, {"channels": {"group-stem": 0.5}, "channel_pruning": ChannelPruning()}),
        ]
        assert space.policy(space.params(inside)) == inside
        assert space.policy(space.params(student)) == student
        for policy, changed in changes:
            with pytest.raises(ValueError, match=r"sites? |model|given|among|temperature"):
                space.params(policy.model_copy(update=changed))


class TestEqualOutcomes:
    """Points that differ only in what does not matter give equal policies."""

    SPACE = SPACES["everything"]

    def same(self, point: dict[str, Any], free: Any) -> bool:
        """Whether the policy of a point stays the same, whatever the axes named by `free` say."""
        draw = random.Random(1)
        policy = self.SPACE.policy(point)
        others = [random_point(self.SPACE, draw) for _ in range(30)]
        found = [
            self.SPACE.policy({name: other[name] if free(name) else value for name, value in point.items()})
            for other in others
        ]
        assert [one.digest == policy.digest for one in found] == [one == policy for one in found]
        return all(one == policy for one in found)

    def point(self, seed: int, **changed: Any) -> dict[str, Any]:
        return random_point(self.SPACE, random.Random(seed)) | changed

    @pytest.mark.parametrize("seed", range(5))
    def test_what_is_in_a_dropped_block_does_not_matter(self, seed: int) -> None:
        point = self.point(seed, model="trained") | {"body.0/dropped": "yes", "body.1/dropped": "no"}
        policy = self.SPACE.policy(point)
        assert policy.dropped == ("body.0",)
        assert policy.sites.keys() == {"stem", "body.1.a"}
        assert self.same(point, lambda name: name.startswith(("body.0.", "group-body.0.", "tiny:")))
        assert not self.same(point, lambda name: name == "body.0/dropped")
        assert not self.same(point, lambda name: name == "stem/prune")

    @pytest.mark.parametrize("seed", range(5))
    def test_the_trained_models_channels_blocks_and_sites_do_not_matter_to_a_student(self, seed: int) -> None:
        point = self.point(seed, model="tiny")
        policy = self.SPACE.policy(point)
        assert (policy.model, policy.channels, policy.dropped) == ("tiny", {}, ())
        assert policy.sites.keys() == {"all"}
        assert self.same(point, lambda name: name.startswith(("stem", "body", "group")))
        assert not self.same(point, lambda name: name == "temperature")

    def test_bits_of_floats_and_the_ratio_beside_a_pattern_do_not_matter(self) -> None:
        space = SPACES["patterns"]
        point = random_point(space, random.Random(0)) | {"stem/prune": "2:4 pruned"}
        assert space.policy(point | {"stem/ratio": 0.0}) == space.policy(point | {"stem/ratio": 0.5})
        kinds = SPACES["all kinds"]
        point = random_point(kinds, random.Random(0)) | {"stem/kind": "float16"}
        assert kinds.policy(point | {"stem/bits": 2}) == kinds.policy(point | {"stem/bits": 4})

    def test_a_policy_that_removes_no_channel_says_nothing_about_channels(self) -> None:
        space = SPACES["groups"]
        point = random_point(space, random.Random(0))
        whole = space.policy(point | {"group-stem/channels": 0.0})
        assert (whole.channels, whole.channel_pruning) == ({}, None)
        assert whole == Space(space.sites).policy({name: v for name, v in point.items() if "group" not in name})
        cut = space.policy(point | {"group-stem/channels": 0.25})
        assert (cut.channels, cut.channel_pruning) == ({"group-stem": 0.25}, space.channel_pruning)


def test_temperature_alpha_and_distillation_go_together() -> None:
    whole = SPACES["distilled"]
    for part in ("temperature", "alpha", "distillation"):
        without: Any = {part: None}
        with pytest.raises(ValueError, match="temperature, alpha and distillation"):
            replace(whole, **without)


class TestMake:
    @pytest.mark.parametrize("seed", range(20))
    def test_it_makes_the_policies_of_the_points(self, seed: int) -> None:
        space = SPACES["everything"]
        policy = space.policy(random_point(space, random.Random(seed)))
        settings = policy.distillation
        assert settings is not None
        sites = {**dict.fromkeys(("body.0.a", "body.0.b", "body.1.a"), Choice()), **policy.sites}
        made = space.make(
            sites if policy.model is None else policy.sites,
            settings.temperature,
            settings.alpha,
            channels=policy.channels,
            dropped=policy.dropped,
            model=policy.model,
        )
        assert made == policy
        assert made.digest == policy.digest

    def test_without_temperature_and_alpha_it_takes_the_lowest(self) -> None:
        settings = SPACES["distilled"].make({}).distillation
        assert settings == SETTINGS.model_copy(update={"temperature": 1.0, "alpha": 0.0})

    def test_groups_that_are_not_named_stay_whole(self) -> None:
        made = SPACES["a group with one value"].make({}, channels={"group-body.0.a": 0.5, "group-stem": 0.0})
        assert made.channels == {"group-body.0.a": 0.5}
        assert SPACES["groups"].make({}) == Policy(sites={})


class TestUniform:
    def test_it_is_the_same_choice_everywhere_unpruned_first_and_wide_to_narrow(self) -> None:
        names = ("stem", "body", "head")
        space = Space(sites(*names, bits=(2, 8), kinds=("float16", "uniform", "float32")))
        kinds: list[Weights] = [Float32(), Float16(), Uniform(bits=8), Uniform(bits=2)]
        cuts: list[Prune] = [NoPruning(), Unstructured(ratio=0.5)]
        expected = [Choice(prune=prune, weights=weights) for prune in cuts for weights in kinds]
        assert space.uniform() == [dict.fromkeys(names, choice) for choice in expected]

    @spaces
    def test_all_are_allowed_and_different(self, space: Space) -> None:
        found = space.uniform()
        allowed = {one.name: one.choices() for one in space.sites}
        assert all(choice in allowed[name] for sites in found for name, choice in sites.items())
        assert all(sites.keys() == allowed.keys() for sites in found)
        assert len({Policy(sites=sites).digest for sites in found}) == len(found)

    @spaces
    def test_each_wish_of_each_site_is_granted_somewhere(self, space: Space) -> None:
        granted = {(name, choice) for sites in space.uniform() for name, choice in sites.items()}
        for one in space.sites:  # patterns and further kinds of activations are left to the search
            cuts = [one.prune(ratio) for ratio in one.ratios] or one.patterns[:1]
            plain = {c for c in one.choices() if c.prune in cuts and c.activations == one.activations[0]}
            assert {choice for name, choice in granted if name == one.name} == plain

    def test_a_site_that_cannot_takes_what_is_nearest_and_of_two_as_near_the_smaller(self) -> None:
        space = Space((site("a", ratios=(0.0,)), site("b", ratios=(0.0, 0.75), bits=(3, 5))))
        widths = [tuple(one.weights for one in sites.values()) for sites in space.uniform()]
        pairs = [(8, 5), (4, 5), (4, 3), (2, 3)]  # wishes for 8; for 5; for 4 and 3; for 2
        assert list(dict.fromkeys(widths)) == [(Uniform(bits=a), Uniform(bits=b)) for a, b in pairs]

    def test_excluded_sites_stay_as_they_are(self) -> None:
        found = SPACES["excluded"].uniform()
        assert len(found) == 6
        assert all(sites["body"] == Choice() for sites in found)


class TestDocument:
    @spaces
    def test_a_space_comes_back_from_its_document(self, space: Space) -> None:
        again = Space.read(json.loads(json.dumps(space.document())))
        assert again == space
        assert again.axes() == space.axes()
        assert again.size() == space.size()

    @spaces
    def test_every_part_of_a_space_is_in_its_document(self, space: Space) -> None:
        documents = {json.dumps(other.document()) for other in SPACES.values()}
        assert len(documents) == len(SPACES)
        changed = replace(space, smoothing=0.25, channel_pruning=ChannelPruning(multiple=3))
        assert Space.read(json.loads(json.dumps(changed.document()))) == changed

    @pytest.mark.parametrize(
        "document", [{}, {"sites": 3}, {"sites": [{"name": "a"}]}, {**SPACES["plain"].document(), "blocks": [["a"]]}]
    )
    def test_what_is_no_document_is_refused(self, document: dict[str, Any]) -> None:
        with pytest.raises((KeyError, TypeError, ValueError)):
            Space.read(document)
