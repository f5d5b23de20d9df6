"""The space that a config allows on sites: rules, globs and targets, and refusals of what does not fit."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from compress.pruning.channel_scores import kept_channels
from spaces.build import Place, Wishes, check_globs, group_ratios, kept_count, site_spaces
from spaces.choice import (
    DynamicActivations,
    Float32,
    NoPruning,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
)
from spaces.errors import ConfigError
from spaces.policy import Choice
from spaces.site_space import SiteSpace, Style
from spaces.target import ONNXRUNTIME_CPU, STORAGE, TARGETS

NARROW = replace(
    ONNXRUNTIME_CPU, weights=frozenset({"uniform", "float32"}), bits=frozenset({8}), activations=frozenset()
)
NAMES = ["stem", "body.0", "body.1", "head"]
PLACES = [Place(name, 48) for name in NAMES]


@dataclass(frozen=True)
class SiteRule:
    sites: str
    bits: tuple[int, ...] | None = None
    ratios: tuple[float, ...] | None = None
    weights: tuple[str, ...] | None = None
    patterns: tuple[str, ...] | None = None
    activations: tuple[str, ...] | None = None
    scale_per: str | int | None = None
    criterion: Any = None
    rounding: Any = None


def wishes(**changed: Any) -> Wishes:
    settings: dict[str, Any] = {
        "bits": (2, 4, 8),
        "ratios": (0.0, 0.5),
        "prune": ("unstructured",),
        "weights": ("uniform",),
    }
    return Wishes(**settings | changed)


def build(places: Sequence[Place] = PLACES, **changed: Any) -> tuple[SiteSpace, ...]:
    where = {key: changed.pop(key) for key in ("exclude", "rules", "target") if key in changed}
    return site_spaces(places, wishes(**changed), **where)


def only(columns: int = 48, *, quantizes_input: bool = True, **changed: Any) -> SiteSpace:
    return build([Place("fc", columns, quantizes_input)], **changed)[0]


class TestSites:
    def test_they_are_in_model_order(self) -> None:
        assert [site.name for site in build()] == NAMES
        assert build([]) == ()

    def test_values_are_sorted_and_each_once(self) -> None:
        site = only(bits=(8, 2, 2), ratios=(0.5, 0, 0.5), weights=("uniform", "float16", "uniform"))
        assert site == SiteSpace("fc", ("uniform", "float16"), (0.0, 0.5), (2, 8))

    def test_bits_are_left_out_where_nothing_has_any(self) -> None:
        assert only(weights=("float16", "float32")).bits == ()
        assert only(weights=("float16", "codebook")).bits == (2, 4, 8)

    def test_all_choices_have_the_style_that_is_wished_for(self) -> None:
        site = only(
            criterion="hessian", scale_per=16, symmetric=False, rounding="gptq", fisher=True, weights=("uniform",)
        )
        assert site.style == Style("hessian", "group", 16, False, "gptq", True)
        assert site.choices()[-1].weights == Uniform(
            bits=8, scale_per="group", group_size=16, symmetric=False, rounding="gptq"
        )
        assert only(scale_per="tensor").style == Style(scale_per="tensor")
        assert only().style == Style()

    @pytest.mark.parametrize(
        "changed",
        [
            {"ratios": (0.5,), "prune": ("none",)},
            {"bits": (16,)},
            {"weights": ("int8",)},
            {"ratios": ()},
            {"prune": ("nm",), "patterns": (), "ratios": (0.5,)},
            {"prune": ("threshold",), "ratios": (0.5,)},
            {"prune": ("unstructured",), "ratios": (), "patterns": ("2:4",), "thresholds": (0.1,)},
        ],
    )
    def test_a_site_without_a_choice_is_an_error_that_names_it(self, changed: Any) -> None:
        with pytest.raises(ConfigError, match="site stem has no choice left"):
            build(**changed)


class TestPruning:
    NM = (SemiStructured(n=2, m=4), SemiStructured(n=1, m=4))

    @pytest.mark.parametrize(
        ("prune", "ratios", "patterns"),
        [
            (("none",), (0.0,), ()),
            (("unstructured",), (0.0, 0.5), ()),
            (("none", "unstructured"), (0.0, 0.5), ()),
            (("unstructured", "nm"), (0.0, 0.5), NM),
            (("nm",), (), NM),
            (("none", "nm"), (0.0,), NM),
            (("threshold", "none"), (0.0,), (Threshold(value=0.1),)),
            (("threshold", "nm"), (), (*NM, Threshold(value=0.1))),
        ],
    )
    def test_there_is_what_the_kinds_of_pruning_allow(self, prune: Any, ratios: Any, patterns: Any) -> None:
        site = only(prune=prune, patterns=("2:4", "1:4"), thresholds=(0.1,))
        assert (site.ratios, site.patterns) == (ratios, patterns)

    def test_patterns_rank_weights_by_the_criterion(self) -> None:
        assert only(prune=("nm",), patterns=("2:4",), criterion="wanda").patterns == (
            SemiStructured(n=2, m=4, criterion="wanda"),
        )

    @pytest.mark.parametrize(
        ("columns", "pattern", "multiple"), [(9, "2:4", 4), (27, "1:2", 2), (36, "2:8", 8), (1, "15:16", 16)]
    )
    def test_one_that_does_not_fit_is_refused_with_the_site_and_both_numbers(
        self, columns: int, pattern: str, multiple: int
    ) -> None:
        places = [Place("head", 48), Place("stem", columns)]
        with pytest.raises(ConfigError) as caught:
            build(places, prune=("nm", "none"), patterns=(pattern,))
        message = str(caught.value)
        assert message.startswith(f"space.patterns: {pattern} does not fit site stem, ")
        assert f"have {columns} weights, which is no multiple of {multiple}: " in message
        for changed in ({"rules": [SiteRule("stem", patterns=())]}, {"exclude": ["stem"]}, {"prune": ("none",)}):
            found = build(places, **{"prune": ("nm", "none"), "patterns": (pattern,)} | changed)
            assert found[1].patterns == ()

    def test_one_that_fits_is_taken(self) -> None:
        assert only(32, prune=("nm",), patterns=("15:16", "1:2")).patterns == (
            SemiStructured(n=15, m=16),
            SemiStructured(n=1, m=2),
        )


class TestScale:
    def test_a_group_size_that_does_not_fit_is_refused_with_the_site_and_both_numbers(self) -> None:
        places = [Place("head", 64), Place("stem", 27)]
        with pytest.raises(ConfigError) as caught:
            build(places, scale_per=32)
        message = str(caught.value)
        assert message.startswith("space.scale_per: 32 does not fit site stem, whose channels have 27 weights, ")
        assert "no multiple of 32: " in message

    @pytest.mark.parametrize(
        "changed",
        [
            {"rules": [SiteRule("stem", scale_per="channel")]},
            {"rules": [SiteRule("stem", scale_per=9)]},
            {"rules": [SiteRule("stem", weights=("codebook", "float16"))]},
            {"exclude": ["stem"]},
        ],
        ids=["per channel", "another size", "nothing with a scale", "excluded"],
    )
    def test_a_rule_or_exclude_mends_it(self, changed: Any) -> None:
        found = build([Place("head", 64), Place("stem", 27)], scale_per=32, **changed)
        assert found[0].style == Style(scale_per="group", group_size=32)
        assert all(Choice.model_validate(choice.model_dump()) == choice for site in found for choice in site.choices())


class TestActivations:
    ALL = ("float", "static", "dynamic")

    def test_they_are_chosen_only_where_the_input_can_be_quantized(self) -> None:
        found = build(
            [Place("words", 8, quantizes_input=False), Place("head", 8)],
            activations=self.ALL,
            activation_bits=(4, 8),
            activation_range="percentile",
        )
        assert found[0].activations == (None,)
        assert found[1].activations == (
            None,
            *(StaticActivations(bits=bits, range="percentile") for bits in (4, 8)),
            *(DynamicActivations(bits=bits) for bits in (4, 8)),
        )

    def test_what_is_wished_for_first_comes_first(self) -> None:
        assert only(activations=("dynamic", "float")).activations == (DynamicActivations(bits=8), None)
        assert only(activations=("static",)).activations == (StaticActivations(bits=8),)

    def test_those_that_the_target_does_not_allow_are_left_out_or_refused_where_nothing_is_left(self) -> None:
        assert only(activations=("static", "float"), target=NARROW).activations == (None,)
        with pytest.raises(ConfigError) as caught:
            only(activations=("static",), target=NARROW)
        assert str(caught.value) == (
            "space.activations: given ['static'] for site fc, target onnxruntime-cpu allows ['float']"
        )
        assert only(activations=("static",), target=NARROW, quantizes_input=False).activations == (None,)


class TestRules:
    def test_a_later_rule_wins_key_by_key_and_exclude_wins_over_all(self) -> None:
        rules = [SiteRule("body.*", bits=(3,), ratios=(0.25,)), SiteRule("*.1", bits=(5, 6))]
        assert build(rules=rules, exclude=["head"]) == (
            SiteSpace("stem", ("uniform",), (0.0, 0.5), (2, 4, 8)),
            SiteSpace("body.0", ("uniform",), (0.25,), (3,)),
            SiteSpace("body.1", ("uniform",), (0.25,), (5, 6)),
            SiteSpace("head", ("float32",), (0.0,), ()),
        )
        for site in build(rules=[SiteRule("*", bits=(3,))], exclude=["*"]):
            assert site.choices() == (Choice(prune=NoPruning(), weights=Float32(), activations=None),)

    @pytest.mark.parametrize(
        ("changed", "expected"),
        [
            ({"bits": (7,)}, Uniform(bits=7)),
            ({"scale_per": "tensor"}, Uniform(bits=2, scale_per="tensor")),
            ({"scale_per": 24}, Uniform(bits=2, scale_per="group", group_size=24)),
            ({"rounding": "adaround"}, Uniform(bits=2, rounding="adaround")),
            ({"weights": ("float32",)}, Float32()),
        ],
    )
    def test_they_say_how_weights_are_stored(self, changed: Any, expected: Any) -> None:
        head, *_, stem = reversed(build(rules=[SiteRule("head", **changed)]))
        assert head.choices()[0].weights == expected
        assert stem.choices()[0].weights == Uniform(bits=2)

    def test_they_say_what_is_pruned_and_by_what(self) -> None:
        rules = [
            SiteRule("head", patterns=("1:2",), criterion="taylor"),
            SiteRule("body.0", ratios=(0.75,)),
            SiteRule("body.1", patterns=()),
        ]
        stem, first, second, head = build(prune=("unstructured", "nm"), patterns=("2:4",), rules=rules)
        assert (stem.ratios, stem.patterns) == ((0.0, 0.5), (SemiStructured(n=2, m=4),))
        assert (first.ratios, first.patterns) == ((0.75,), stem.patterns)
        assert (second.ratios, second.patterns) == ((0.0, 0.5), ())
        assert head.patterns == (SemiStructured(n=1, m=2, criterion="taylor"),)
        assert head.prunings()[1] == stem.prune(0.5).model_copy(update={"criterion": "taylor"})

    def test_they_say_which_activations(self) -> None:
        rules = [SiteRule("body.*", activations=("static",)), SiteRule("head", activations=("float", "dynamic"))]
        stem, *body, head = build(rules=rules)
        assert stem.activations == (None,)
        assert {site.activations for site in body} == {(StaticActivations(bits=8),)}
        assert head.activations == (None, DynamicActivations(bits=8))

    @pytest.mark.parametrize(
        ("changed", "where"),
        [
            ({"exclude": ["stem", "Head"]}, r"space\.exclude\[1\]: given 'Head'"),
            ({"rules": [SiteRule("head"), SiteRule("tail*")]}, r"space\.rules\[1\]\.sites: given 'tail\*'"),
        ],
    )
    def test_a_glob_that_matches_no_site_is_an_error_that_lists_them(self, changed: Any, where: str) -> None:
        with pytest.raises(ConfigError, match=where + ", which matches no site; the sites are stem, body.0, body.1, h"):
            check_globs(NAMES, **changed)

    def test_globs_that_match_are_not_refused(self) -> None:
        check_globs(NAMES, exclude=["body.*", "h*"], rules=[SiteRule("*"), SiteRule("*.[01]")])


class TestTargets:
    EVERYTHING: ClassVar[dict[str, Any]] = {
        "bits": tuple(range(2, 9)),
        "weights": ("uniform", "codebook", "float16", "float32"),
        "prune": ("none", "unstructured", "nm", "threshold"),
        "patterns": ("2:4",),
        "thresholds": (0.01,),
        "activations": ("float", "static", "dynamic"),
    }

    def test_storage_takes_everything(self) -> None:
        site = only(**self.EVERYTHING)
        assert len(site.choices()) == (7 + 7 + 1 + 1) * (2 + 1 + 1) * 3
        assert (STORAGE.coding, STORAGE.multiple) == ("entropy", 1)

    def test_onnxruntime_prunes_no_single_weights_and_takes_four_and_eight_bits(self) -> None:
        site = only(**self.EVERYTHING, target=ONNXRUNTIME_CPU)
        assert (site.kinds, site.ratios, site.bits) == (self.EVERYTHING["weights"], (0.0,), (4, 8))
        assert (site.patterns, len(site.choices())) == ((), (2 + 2 + 1 + 1) * 3)
        assert (ONNXRUNTIME_CPU.coding, ONNXRUNTIME_CPU.multiple) == ("packed", 8)

    def test_a_narrow_target_leaves_what_can_run_there(self) -> None:
        site = only(**self.EVERYTHING, target=NARROW)
        assert site == SiteSpace("fc", ("uniform", "float32"), (0.0,), (8,))
        assert site.choices() == (Choice(weights=Uniform(bits=8)), Choice())

    @pytest.mark.parametrize("changed", [{"bits": (4, 7)}, {"weights": ("float16", "codebook")}, {"ratios": (0.5,)}])
    def test_a_site_for_which_it_leaves_nothing_is_an_error_that_says_what_it_allows(self, changed: Any) -> None:
        with pytest.raises(ConfigError) as caught:
            only(target=NARROW, **changed)
        assert str(caught.value).endswith(
            "target onnxruntime-cpu allows weights ['float32', 'uniform'], bits [8], prune ['none']"
        )

    def test_a_pattern_that_the_target_does_not_allow_need_not_fit(self) -> None:
        assert only(9, prune=("none", "nm"), patterns=("2:4",), target=NARROW).patterns == ()

    def test_excluded_sites_can_run_everywhere(self) -> None:
        assert {target.name for target in TARGETS.values()} == set(TARGETS) == {"storage", "onnxruntime-cpu"}
        for target in TARGETS.values():
            assert "float32" in target.weights
            assert "none" in target.prune
            assert only(exclude=["*"], target=target).choices() == (Choice(),)


class TestGroups:
    @pytest.mark.parametrize("multiple", [1, 2, 3, 8])
    def test_as_many_stay_as_are_kept_where_channels_are_removed(self, multiple: int) -> None:
        for channels in range(1, 40):
            scores = torch.arange(channels).float()
            for ratio in (i / 20 for i in range(20)):
                kept = kept_channels(scores, ratio, multiple)
                assert kept_count(channels, ratio, multiple) == len(kept), (channels, ratio)

    @pytest.mark.parametrize("multiple", [1, 2, 4, 8, 16])
    @pytest.mark.parametrize("channels", [1, 3, 8, 12, 20, 64])
    def test_each_ratio_leaves_another_number_of_channels_that_runs_fast(self, channels: int, multiple: int) -> None:
        given = [i / 20 for i in range(20)]
        ratios = group_ratios(channels, given, multiple)
        counts = [kept_count(channels, ratio, multiple) for ratio in ratios]
        assert ratios[0] == 0.0
        assert counts[0] == channels
        assert set(ratios) <= set(given)
        assert list(ratios) == sorted(ratios)
        assert counts == sorted(set(counts), reverse=True)
        assert all(count >= 1 and (count % multiple == 0 or count == channels) for count in counts)
        assert set(counts) == {kept_count(channels, ratio, multiple) for ratio in given}

    @pytest.mark.parametrize(
        ("channels", "ratio", "multiple", "kept"),
        [
            (10, 0.0, 1, 10),
            (10, 0.25, 1, 8),
            (10, 0.5, 2, 6),
            (10, 0.99, 1, 1),
            (64, 0.5, 8, 32),
            (64, 0.45, 8, 32),
            (64, 0.99, 8, 8),
            (12, 0.0, 8, 12),
            (12, 0.1, 8, 8),
            (20, 0.01, 8, 16),
            (4, 0.5, 8, 4),
        ],
    )
    def test_it_is_rounded_to_the_nearest_multiple_and_one_stays(
        self, channels: int, ratio: float, multiple: int, kept: int
    ) -> None:
        assert kept_count(channels, ratio, multiple) == kept

    def test_of_ratios_that_give_one_model_the_smallest_stays(self) -> None:
        assert group_ratios(4, (0.0, 0.2, 0.3, 0.5, 0.55), 1) == (0.0, 0.2, 0.5)
        assert group_ratios(4, (0.0, 0.2, 0.9), 8) == (0.0,)
