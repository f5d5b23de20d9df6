"""How much loss each choice at a site is predicted to cost: against the definitions; kept, counted, never silent."""

import copy
import json
import math
import pickle
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.apply import apply
from compress.inputs import metered, outputs, take
from compress.quantization.activations import quantize_inputs
from compress.sites import find_sites
from objectives.score import Scorer
from objectives.sensitivities import KINDS, SiteSensitivity, setting_loss, site_sensitivity
from objectives.workload import load_workload
from spaces.errors import CandidateError
from spaces.policy import (
    ChannelPruning,
    Choice,
    NoPruning,
    Policy,
    StaticActivations,
    Uniform,
    Unstructured,
)
from tests.models import digest
from tests.scoring import CHUNK, evaluation, scorer_of

WHOLE = Policy(sites={})
CUT = Policy(sites={}, channels={"group-first": 0.5}, channel_pruning=ChannelPruning(criterion="l2"))
CHOICES = tuple(
    Choice(prune=prune, weights=weights)
    for prune in (NoPruning(), Unstructured(ratio=0.6))
    for weights in (Uniform(bits=2), Uniform(bits=4), Uniform(bits=6))
)
ROUNDED = Choice(weights=Uniform(bits=4), activations=StaticActivations(bits=4))
SAMPLES = 20
SITES = ("first", "second", "head")


def scorer(entry: str, folder: Path) -> Scorer:
    return scorer_of(load_workload(f"tests.tiny:{entry}"), replace(evaluation(folder), steps=()))


@pytest.fixture
def plain(tmp_path: Path) -> Scorer:
    return scorer("workload", tmp_path)


def same(left: SiteSensitivity, right: SiteSensitivity) -> bool:
    for one in fields(SiteSensitivity):
        if not np.array_equal(getattr(left, one.name), getattr(right, one.name), equal_nan=True):
            return False
    return True


def divergence(one: Scorer, model: nn.Module, samples: int = SAMPLES) -> float:
    """Mean KL to the brought model's outputs, from the definition, over the samples that are drawn."""
    at, weights = one.models.base(WHOLE).drawn(samples)
    inputs = one.loaded.splits["calibration"].inputs
    p, q = (outputs(net, take(inputs, at), CHUNK).double().softmax(dim=1) for net in (one.loaded.model, model))
    return float((p * (p / q).log()).sum(dim=1) @ weights)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "sensitivities").rglob("*.json"))


class TestWholeModel:
    @pytest.mark.parametrize("site", SITES)
    def test_kl_is_that_of_the_float_model_with_one_site_changed(self, plain: Scorer, site: str) -> None:
        found = site_sensitivity(plain, WHOLE, site, (*CHOICES, ROUNDED), SAMPLES)
        place = next(one for one in plain.loaded.sites if one.name == site)
        for choice, kl in zip((*CHOICES, ROUNDED), found.kl, strict=True):
            model = copy.deepcopy(plain.loaded.model)
            coded = plain.models.database(None).layer(place, choice).coded
            with torch.no_grad():
                dict(model.named_parameters())[place.parameter].copy_(place.weight(coded.decode()))
            if coded.inputs is not None:
                quantize_inputs(model, {site: coded.inputs})
            assert kl == pytest.approx(divergence(plain, model), rel=1e-3, abs=1e-9)

    def test_output_is_the_error_of_the_layer_database(self, plain: Scorer) -> None:
        found = site_sensitivity(plain, WHOLE, "second", CHOICES, 0)
        costs = plain.models.database(None).costs(plain.loaded.sites[1], CHOICES)
        assert found.output.tolist() == [cost.error for cost in costs]

    def test_what_is_not_changed_costs_nothing_and_runs_nothing(self, plain: Scorer) -> None:
        found = site_sensitivity(plain, WHOLE, "second", [Choice()], SAMPLES)
        assert [float(getattr(found, kind)[0]) for kind in KINDS] == [0.0] * 4
        assert (found.forwards, found.backwards) == (0, 0)

    def test_each_way_ranks_coarse_above_fine(self, plain: Scorer) -> None:
        widths = [Choice(weights=Uniform(bits=bits)) for bits in (2, 3, 4, 6, 8)]
        for site in SITES:
            found = site_sensitivity(plain, WHOLE, site, widths, 48)
            for kind in KINDS:
                assert sorted(getattr(found, kind), reverse=True) == list(getattr(found, kind)), (site, kind)

    def test_for_a_fine_choice_predictions_are_near_what_is_measured(self, plain: Scorer) -> None:
        fine = [Choice(weights=Uniform(bits=bits)) for bits in (4, 5, 6)]
        found = [site_sensitivity(plain, WHOLE, site, fine, 48) for site in SITES]
        for kind in ("fisher", "gradient"):
            ratios = [getattr(one, kind) / one.kl for one in found]
            assert 0.4 < float(np.exp(np.mean(np.log(ratios)))) < 2.5, kind

    def test_few_samples_tell_nearly_what_all_do(self, plain: Scorer) -> None:
        few, all_ = (
            np.concatenate([site_sensitivity(plain, WHOLE, site, CHOICES, samples).kl for site in SITES])
            for samples in (16, 48)
        )
        assert float(np.abs(np.log(few / all_)).max()) < 0.5

    def test_rounded_inputs_cost_more(self, plain: Scorer) -> None:
        choices = [ROUNDED.model_copy(update={"activations": None}), ROUNDED]
        found = site_sensitivity(plain, WHOLE, "second", choices, SAMPLES)
        for kind in KINDS:
            alone, rounded = getattr(found, kind)
            assert rounded > alone > 0, kind

    def test_not_measured_is_not_a_number(self, plain: Scorer) -> None:
        found = site_sensitivity(plain, WHOLE, "head", CHOICES, 0)
        assert np.isnan(found.kl).all()
        assert np.isfinite([found.output, found.fisher, found.gradient]).all()

    def test_more_samples_than_there_are_are_all(self, plain: Scorer) -> None:
        found, all_ = (site_sensitivity(plain, WHOLE, "head", CHOICES, samples) for samples in (10**6, 48))
        assert found.kl.tolist() == all_.kl.tolist()
        assert found.forwards == all_.forwards == 48 * len(CHOICES)

    def test_passes_are_counted_once_whatever_comes_first(self, plain: Scorer, tmp_path: Path) -> None:
        other = scorer("workload", tmp_path / "other")
        there = {site: site_sensitivity(plain, WHOLE, site, CHOICES, SAMPLES) for site in SITES}
        back = {site: site_sensitivity(other, WHOLE, site, CHOICES, SAMPLES) for site in reversed(SITES)}
        assert all(same(there[site], back[site]) for site in SITES)
        assert [there[site].backwards for site in SITES] == [48, 0, 0]
        measured = SAMPLES * len(CHOICES)
        assert [there[site].forwards for site in SITES] == [measured + 48 + 3, measured, measured]

    def test_counted_is_what_is_run(self, plain: Scorer) -> None:
        plain.models.statistics(None)  # of the layer database
        with metered(plain.loaded.model) as meter:  # copies count, too
            found = [site_sensitivity(plain, WHOLE, site, CHOICES, SAMPLES) for site in SITES]
        assert sum(one.forwards for one in found) == meter.samples

    def test_the_models_are_left_as_they_were(self, plain: Scorer) -> None:
        before = digest(plain.loaded.model)
        site_sensitivity(plain, WHOLE, "first", (*CHOICES, ROUNDED), SAMPLES)
        base = plain.models.base(WHOLE).model
        assert digest(plain.loaded.model) == before
        assert divergence(plain, base) == 0.0
        for model in (base, plain.loaded.model):
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    def test_a_site_that_is_not_there_is_named(self, plain: Scorer) -> None:
        with pytest.raises(CandidateError, match=r"site third: .* it has \['first', 'second', 'head'\]"):
            site_sensitivity(plain, WHOLE, "third", CHOICES, 0)

    def test_nothing_is_cut_out(self, plain: Scorer) -> None:
        assert setting_loss(plain, WHOLE, 0) == setting_loss(plain, WHOLE, SAMPLES) == 0.0

    def test_outputs_to_compare_with_are_needed(self, plain: Scorer) -> None:
        teacher = replace(plain.teacher, calibration=plain.teacher.calibration[:5])
        other = Scorer(plain.loaded, plain.evaluation, teacher)
        with pytest.raises(CandidateError, match="outputs for 5 calibration samples, expected 48"):
            site_sensitivity(other, WHOLE, "head", CHOICES, 0)

    def test_they_travel_between_processes(self, plain: Scorer) -> None:
        found = site_sensitivity(plain, WHOLE, "head", CHOICES, 0)
        assert same(pickle.loads(pickle.dumps(found)), found)


class TestValues:
    def test_kl_is_the_mean_squared_error(self, tmp_path: Path) -> None:
        one = scorer("regression", tmp_path)
        found = site_sensitivity(one, WHOLE, "head", CHOICES[:1], 48)
        model = copy.deepcopy(one.loaded.model)
        site = one.loaded.sites[-1]
        with torch.no_grad():
            weight = dict(model.named_parameters())[site.parameter]
            weight.copy_(site.weight(one.models.database(None).layer(site, CHOICES[0]).coded.decode()))
        given = one.loaded.splits["calibration"].inputs
        error = (outputs(model, given, CHUNK) - outputs(one.loaded.model, given, CHUNK)).square().mean()
        assert found.kl[0] == pytest.approx(float(error), rel=1e-4)

    def test_of_a_last_layer_the_score_by_gradients_is_exact(self, tmp_path: Path) -> None:
        one = scorer("regression", tmp_path)
        found = site_sensitivity(one, WHOLE, "head", CHOICES, 48)
        assert np.allclose(found.gradient, found.kl, rtol=1e-3)


class TestSettings:
    def test_a_cut_model_is_measured_beyond_its_own_loss(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        base = one.models.base(CUT)
        own = setting_loss(one, CUT, SAMPLES)
        assert own == pytest.approx(divergence(one, base.model), rel=1e-4)
        assert own > 0
        site = base.variant.sites[0]
        found = site_sensitivity(one, CUT, site.name, [Choice(), CHOICES[0]], SAMPLES)
        assert found.kl[0] == found.fisher[0] == 0.0
        model = copy.deepcopy(base.model)
        layer = one.models.database(None).layer(site, CHOICES[0], base.variant.cuts[site.name])
        with torch.no_grad():
            dict(model.named_parameters())[site.parameter].copy_(site.weight(layer.coded.decode()))
        assert found.kl[1] == pytest.approx(max(0.0, divergence(one, model) - own), rel=1e-3, abs=1e-8)

    def test_counted_is_what_is_run(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        one.models.statistics(None)
        variant = one.models.variant(CUT)
        with metered(variant.model) as meter:
            found = [site_sensitivity(one, CUT, site.name, CHOICES, SAMPLES) for site in variant.sites]
            setting_loss(one, CUT, SAMPLES)
        assert sum(one.forwards for one in found) == meter.samples

    def test_its_weights_are_those_its_candidates_start_from(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        variant = one.models.variant(CUT)
        float32 = {site.name: Choice() for site in variant.sites}
        wanted = apply(variant.model, variant.sites, float32, one.models.database(None), variant.cuts).model
        made = dict(one.models.base(CUT).model.named_parameters())
        for site in variant.sites:
            assert torch.equal(made[site.parameter], dict(wanted.named_parameters())[site.parameter])

    def test_a_dropped_block_costs_what_the_model_without_it_does(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        policy = Policy(sites={}, dropped=("two",))
        own = setting_loss(one, policy, 48)
        assert own == pytest.approx(divergence(one, one.models.variant(policy).model, 48), rel=1e-4)
        assert math.isnan(setting_loss(one, policy, 0))
        found = site_sensitivity(one, policy, "one.down", CHOICES, SAMPLES)
        assert np.isfinite(found.kl).all()
        with pytest.raises(CandidateError, match=r"site two\.down"):
            site_sensitivity(one, policy, "two.down", CHOICES, SAMPLES)

    def test_a_student_is_compared_with_the_brought_model(self, tmp_path: Path) -> None:
        one = scorer("taught", tmp_path)
        policy = Policy(sites={}, model="narrow")
        own = setting_loss(one, policy, 48)
        assert own == pytest.approx(divergence(one, one.models.base(policy).model, 48), rel=1e-4)
        assert 0 < own <= divergence(one, one.models.member("narrow").model, 48) + 1e-6
        found = site_sensitivity(one, policy, "first", CHOICES, SAMPLES)
        assert np.isfinite([getattr(found, kind) for kind in KINDS]).all()
        assert found.forwards > site_sensitivity(one, policy, "head", CHOICES, SAMPLES).forwards

    def test_only_a_few_are_held(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        first = one.models.base(WHOLE)
        assert one.models.base(WHOLE) is first
        for policy in (CUT, Policy(sites={}, dropped=("two",))):
            one.models.base(policy)
        assert one.models.base(WHOLE) is not first


class TestWhatIsNotSeen:
    def test_an_embedding_has_no_score_by_gradients(self, tmp_path: Path) -> None:
        one = scorer("words", tmp_path)
        found = site_sensitivity(one, WHOLE, "words", CHOICES, SAMPLES)
        assert np.isnan(found.gradient).all()
        assert np.isfinite([found.output, found.fisher, found.kl]).all()
        assert np.isfinite(site_sensitivity(one, WHOLE, "head", CHOICES, SAMPLES).gradient).all()

    def test_counted_is_what_is_run_alone(self, tmp_path: Path) -> None:
        one = scorer("words", tmp_path)
        one.models.statistics(None)
        with metered(one.loaded.model) as meter:
            found = [site_sensitivity(one, WHOLE, site, CHOICES, SAMPLES) for site in ("words", "head")]
        assert sum(each.forwards for each in found) == meter.samples
        assert [each.backwards for each in found] == [96, 0]

    @pytest.mark.parametrize("where", ["second", "head"])
    def test_where_no_gradient_gets_there_are_no_scores_by_gradients(self, where: str, tmp_path: Path) -> None:
        loaded = load_workload("tests.tiny:workload")
        loaded.model.get_submodule(where).register_forward_hook(lambda module, given, out: out.detach())
        one = scorer_of(loaded, replace(evaluation(tmp_path), steps=()))
        unseen = {"second": ("first", "second"), "head": SITES}[where]
        for site in SITES:
            found = site_sensitivity(one, WHOLE, site, CHOICES, SAMPLES)
            for scores in (found.fisher, found.gradient):
                assert np.isnan(scores).all() == (site in unseen)
            assert np.isfinite([found.output, found.kl]).all()


class TestFiles:
    def test_what_is_there_is_not_made_again(self, plain: Scorer, tmp_path: Path) -> None:
        first = site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES)
        again = scorer("workload", tmp_path)
        assert same(site_sensitivity(again, WHOLE, "head", CHOICES, SAMPLES), first)
        assert not again.models._bases

    def test_other_choices_samples_and_settings_are_others(self, tmp_path: Path) -> None:
        one = scorer("family", tmp_path)
        for number, (policy, choices, samples) in enumerate(
            [
                (WHOLE, CHOICES, 0),
                (WHOLE, CHOICES, 5),
                (WHOLE, CHOICES[:2], 5),
                (WHOLE, CHOICES[1::-1], 5),
                (CUT, CHOICES, 5),
            ]
        ):
            site_sensitivity(one, policy, "first", choices, samples)
            assert len(files(tmp_path)) == number + 1
        setting_loss(one, CUT, 5)
        assert len(files(tmp_path)) == 6

    @pytest.mark.parametrize("blob", [b"", b"{}", b"[]", b"\xff\x00", b'{"digest": "0", "kl": [0]}', b"[" * 10**5])
    def test_damaged_ones_are_made_again(self, plain: Scorer, tmp_path: Path, blob: bytes) -> None:
        first = site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES)
        (path,) = files(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(blob)
        assert same(site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES), first)
        assert path.read_bytes() == whole

    def test_a_changed_number_is_noticed(self, plain: Scorer, tmp_path: Path) -> None:
        first = site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES)
        (path,) = files(tmp_path)
        about = json.loads(path.read_bytes())
        about["kl"][0] += 1
        path.write_text(json.dumps(about))
        assert same(site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES), first)

    def test_one_under_the_name_of_another_is_noticed(self, plain: Scorer, tmp_path: Path) -> None:
        first = site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES)
        (path,) = files(tmp_path)
        site_sensitivity(plain, WHOLE, "second", CHOICES, SAMPLES)
        other = next(one for one in files(tmp_path) if one != path)
        path.write_bytes(other.read_bytes())
        assert same(site_sensitivity(plain, WHOLE, "head", CHOICES, SAMPLES), first)

    def test_a_study_without_a_cache_keeps_none(self, plain: Scorer, tmp_path: Path) -> None:
        one = Scorer(plain.loaded, replace(plain.evaluation, max_bytes=0), plain.teacher)
        site_sensitivity(one, WHOLE, "head", CHOICES, SAMPLES)
        assert not files(tmp_path)

    def test_of_a_setting_the_loss_is_kept(self, tmp_path: Path) -> None:
        first = setting_loss(scorer("family", tmp_path), CUT, SAMPLES)
        again = scorer("family", tmp_path)
        assert setting_loss(again, CUT, SAMPLES) == first
        assert not again.models._bases


def test_sites_of_the_tiny_workload_are_those_named_here(plain: Scorer) -> None:
    assert tuple(site.name for site in find_sites(plain.loaded.model)) == SITES
