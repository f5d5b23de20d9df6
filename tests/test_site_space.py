"""The choices of one site: every combination of kinds, bits, prunings and activations, as axes."""

import itertools
import json
from typing import Any

import pytest

from spaces.axes import Grid, Options
from spaces.choice import (
    Activations,
    Choice,
    Codebook,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Prune,
    Rounding,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Weights,
)
from spaces.site_space import SiteSpace, Style

KINDS = ("uniform", "codebook", "float16", "float32")
PATTERNS = (SemiStructured(n=2, m=4, criterion="wanda"), Threshold(value=0.02))
ACTIVATIONS: tuple[Activations | None, ...] = (
    StaticActivations(bits=8, range="minmax"),
    None,
    DynamicActivations(bits=8),
    DynamicActivations(bits=5),
)
STYLE = Style(criterion="wanda", scale_per="group", group_size=16, symmetric=False, rounding="gptq", fisher=True)
FULL = SiteSpace("fc", KINDS, (0.0, 0.25, 0.5), (3, 6), PATTERNS, ACTIVATIONS, STYLE)
PLAIN = SiteSpace("fc", ("uniform",), (0.0, 0.5), (2, 4, 8))
SITES = {
    "full": FULL,
    "plain": PLAIN,
    "left alone": SiteSpace("fc", ("float32",), (0.0,), ()),
    "patterns alone": SiteSpace("fc", ("uniform",), (), (4,), PATTERNS),
    "one ratio and a pattern": SiteSpace("fc", ("float16",), (0.5,), (), PATTERNS[:1]),
    "static alone": SiteSpace("fc", ("codebook",), (0.0,), (1,), (), ACTIVATIONS[:1]),
}
some_sites = pytest.mark.parametrize("site", SITES.values(), ids=SITES)


class TestChoices:
    def test_every_kind_comes_with_every_pruning_and_every_kind_of_activations(self) -> None:
        weights: list[Weights] = [
            *(Uniform(bits=b, scale_per="group", group_size=16, symmetric=False, rounding="gptq") for b in (3, 6)),
            *(Codebook(bits=b, fisher=True, rounding="gptq") for b in (3, 6)),
            Float16(),
            Float32(),
        ]
        cuts: list[Prune] = [NoPruning(), *(Unstructured(ratio=r, criterion="wanda") for r in (0.25, 0.5)), *PATTERNS]
        expected = {
            Choice(prune=p, weights=w, activations=a) for w, p, a in itertools.product(weights, cuts, ACTIVATIONS)
        }
        assert len(FULL.choices()) == len(expected) == 6 * 5 * 4
        assert set(FULL.choices()) == expected

    @some_sites
    def test_each_is_there_once(self, site: SiteSpace) -> None:
        assert len(set(site.choices())) == len(site.choices()) > 0

    def test_only_what_compensates_rounds_codebooks_otherwise(self) -> None:
        pairs: dict[Rounding, str] = {"gptq": "gptq", "adaround": "nearest", "nearest": "nearest"}
        for rounding, expected in pairs.items():
            style = Style(rounding=rounding)
            site = SiteSpace("fc", KINDS, (0.0,), (4,), style=style)
            found = {choice.weights.kind: getattr(choice.weights, "rounding", None) for choice in site.choices()}
            assert found == {"uniform": rounding, "codebook": expected, "float16": None, "float32": None}

    @pytest.mark.parametrize(("kind", "match"), [("uniform", "need bits"), ("codebook", "need bits"), ("int8", "int8")])
    def test_a_choice_that_is_incomplete_or_unknown_is_refused(self, kind: str, match: str) -> None:
        with pytest.raises(ValueError, match=f"site fc: .*{match}"):
            PLAIN.choice(kind, NoPruning(), None)


class TestAxes:
    def test_they_are_in_a_fixed_order_and_what_has_one_value_is_none(self) -> None:
        assert list(FULL.axes()) == [
            Options("fc/kind", KINDS),
            Options("fc/prune", ("unstructured", "2:4 pruned", "pruned below 0.02")),
            Grid("fc/ratio", (0.0, 0.25, 0.5)),
            Grid("fc/bits", (3, 6)),
            Options("fc/activations", ("8-bit static", "float", "8-bit dynamic", "5-bit dynamic")),
        ]
        assert list(PLAIN.axes()) == [Grid("fc/ratio", (0.0, 0.5)), Grid("fc/bits", (2, 4, 8))]
        assert [axis.name for axis in SITES["patterns alone"].axes()] == ["fc/prune"]
        assert list(SITES["left alone"].axes()) == list(SITES["static alone"].axes()) == []

    def test_bits_are_no_axis_of_floats(self) -> None:
        assert list(SiteSpace("fc", ("float16", "float32"), (0.0,), (2, 4)).axes()) == [
            Options("fc/kind", ("float16", "float32"))
        ]

    @pytest.mark.parametrize("prefix", ["", "small:"])
    @some_sites
    def test_each_choice_comes_back_from_its_point(self, site: SiteSpace, prefix: str) -> None:
        names = {axis.name for axis in site.axes(prefix)}
        assert all(name.startswith(f"{prefix}fc/") for name in names)
        for choice in site.choices():
            point = site.point(choice, prefix)
            assert names <= point.keys()
            assert site.at({name: point[name] for name in names}, prefix) == choice

    @some_sites
    def test_the_points_of_the_axes_are_the_choices(self, site: SiteSpace) -> None:
        axes = list(site.axes())
        values = [axis.values for axis in axes if isinstance(axis, Grid | Options)]
        names = [axis.name for axis in axes]
        found = {site.at(dict(zip(names, at, strict=True))) for at in itertools.product(*values)}
        assert found == set(site.choices())

    def test_thresholds_that_are_nearly_the_same_have_names_of_their_own(self) -> None:
        site = SiteSpace("fc", ("float32",), (0.0,), (), (Threshold(value=0.01), Threshold(value=0.010000001)))
        assert [site.at(site.point(choice)) for choice in site.choices()] == list(site.choices())

    @pytest.mark.parametrize(
        "choice",
        [
            Choice(weights=Uniform(bits=3)),
            Choice(weights=Uniform(bits=4, symmetric=False)),
            Choice(weights=Uniform(bits=4, rounding="gptq")),
            Choice(weights=Codebook(bits=4)),
            Choice(weights=Float16()),
            Choice(weights=Uniform(bits=4), prune=Unstructured(ratio=0.25)),
            Choice(weights=Uniform(bits=4), prune=Unstructured(ratio=0.5, criterion="taylor")),
            Choice(weights=Uniform(bits=4), prune=SemiStructured(n=2, m=4)),
            Choice(weights=Uniform(bits=4), activations=DynamicActivations(bits=8)),
        ],
    )
    def test_what_is_not_among_them_has_no_point(self, choice: Choice) -> None:
        with pytest.raises(ValueError, match=r"site fc: .* is not among its 6 choices"):
            PLAIN.point(choice)


class TestNearest:
    @pytest.mark.parametrize(
        ("wish", "expected"),
        [
            (("uniform", 0.25, 4), Choice(weights=Uniform(bits=3))),
            (("uniform", 0.99, 8), Choice(prune=Unstructured(ratio=1 - 2**-4), weights=Uniform(bits=5))),
            (("float32", 0.5, 32), Choice(prune=Unstructured(ratio=0.5), weights=Float16())),
        ],
    )
    def test_it_is_the_closest_and_of_two_as_close_the_smaller(self, wish: Any, expected: Choice) -> None:
        site = SiteSpace("fc", ("float16", "uniform"), (0.0, 0.5, 1 - 2**-4), (3, 5))
        assert site.nearest(*wish) == expected

    def test_a_site_that_must_be_pruned_in_a_pattern_is(self) -> None:
        assert SITES["patterns alone"].nearest("uniform", 0.0, 8) == Choice(prune=PATTERNS[0], weights=Uniform(bits=4))

    @some_sites
    def test_what_it_may_be_wished_for_it_grants(self, site: SiteSpace) -> None:
        for ratio, kind, bits in site.wishes():
            found = site.nearest(kind, ratio, bits)
            assert found in site.choices()
            assert (found.weights.kind, getattr(found.weights, "bits", bits)) == (kind, bits)
            assert found.ratio == ratio


class TestDocument:
    @some_sites
    def test_it_comes_back_from_its_document(self, site: SiteSpace) -> None:
        again = SiteSpace.read(json.loads(json.dumps(site.document())))
        assert again == site
        assert again.choices() == site.choices()

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("patterns", [{"kind": "nm", "n": 4, "m": 4}]),
            ("patterns", [{"kind": "diagonal"}]),
            ("activations", [{"kind": "static", "bits": 3}]),
            ("style", {"surprise": 1}),
            ("name", ...),
        ],
    )
    def test_what_is_no_such_document_is_refused(self, key: str, value: Any) -> None:
        document = FULL.document()
        if value is ...:
            del document[key]
        else:
            document[key] = value
        with pytest.raises((KeyError, TypeError, ValueError)):
            SiteSpace.read(document)
