"""Policies as values: their JSON form, their digest, and what a policy file refuses."""

import hashlib
import random
from typing import Any

import pytest
from pydantic import ValidationError

from spaces.policy import (
    Activations,
    ChannelPruning,
    Choice,
    Codebook,
    Distillation,
    DistillationRecord,
    DynamicActivations,
    Float16,
    Float32,
    NoPruning,
    Penalty,
    Policy,
    Prune,
    SemiStructured,
    StaticActivations,
    Threshold,
    Uniform,
    Unstructured,
    Value,
    Weights,
)

SETTINGS = Distillation(temperature=4, alpha=0.7, learning_rate=1e-3, batch_size=32)
CHANGED: dict[str, Any] = {
    "temperature": 5,
    "alpha": 0.5,
    "learning_rate": 1e-4,
    "batch_size": 16,
    "optimizer": "sgd",
    "schedule": "constant",
    "masks": "gradual",
    "rewind": True,
    "grids": "learned",
    "features": 0.5,
    "labels": "teacher",
    "penalty": Penalty(kind="group_lasso", strength=1e-4),
    "cache_bytes": 0,
    "student_steps": 300,
}
DIFFERENT_WEIGHTS: list[Weights] = [
    Float32(),
    Float16(),
    Uniform(bits=4),
    Uniform(bits=5),
    Uniform(bits=4, symmetric=False),
    Uniform(bits=4, scale_per="tensor"),
    Uniform(bits=4, scale_per="group", group_size=16),
    Uniform(bits=4, scale_per="group", group_size=32),
    Uniform(bits=4, rounding="gptq"),
    Uniform(bits=4, rounding="adaround"),
    Codebook(bits=4),
    Codebook(bits=5),
    Codebook(bits=4, fisher=True),
    Codebook(bits=4, rounding="gptq"),
]
DIFFERENT_PRUNES: list[Prune] = [
    Unstructured(ratio=0.5),
    Unstructured(ratio=0.5 + 2**-50),
    Unstructured(ratio=0.5, criterion="taylor"),
    SemiStructured(n=2, m=4),
    SemiStructured(n=1, m=4),
    SemiStructured(n=2, m=8),
    SemiStructured(n=2, m=4, criterion="wanda"),
    Threshold(value=0.5),
    Threshold(value=0.25),
]
DIFFERENT_ACTIVATIONS: list[Activations] = [
    StaticActivations(bits=8),
    StaticActivations(bits=4),
    StaticActivations(bits=8, range="minmax"),
    DynamicActivations(bits=8),
    DynamicActivations(bits=4),
]


def random_policy(seed: int) -> Policy:
    draw = random.Random(seed)
    sites = {}
    for i in range(draw.randrange(6)):
        choice = Choice(prune=random_prune(draw), weights=random_weights(draw), activations=random_activations(draw))
        sites[f"layers.{i}.ü\n\"'{chr(draw.randrange(32, 0xD800))}"] = choice
    settings = Distillation(
        temperature=draw.uniform(0.1, 20), alpha=draw.random(), learning_rate=draw.random() + 1e-6, batch_size=8
    )
    return Policy(
        sites=sites,
        channels={"g": draw.random()},
        channel_pruning=draw.choice([None, ChannelPruning(multiple=draw.randrange(1, 9))]),
        dropped=draw.choice([(), ("a",), ("a", "b")]),
        model=draw.choice([None, "small"]),
        smoothing=draw.choice([None, 0, draw.random()]),
        distillation=draw.choice([None, settings, settings.model_copy(update=CHANGED)]),
    )


def random_prune(draw: random.Random) -> Prune:
    m = draw.randrange(2, 17)
    found: list[Prune] = [
        NoPruning(),
        Unstructured(ratio=draw.uniform(0.001, 0.999), criterion=draw.choice(("magnitude", "random", "apoz"))),
        SemiStructured(n=draw.randrange(1, m), m=m, criterion=draw.choice(("wanda", "hessian", "taylor"))),
        Threshold(value=draw.random() + 1e-9),
    ]
    return draw.choice(found)


def random_weights(draw: random.Random) -> Weights:
    bits, symmetric = draw.randrange(2, 9), draw.random() < 0.5
    found: list[Weights] = [
        Float32(),
        Float16(),
        Uniform(bits=bits, symmetric=symmetric),
        Uniform(bits=bits, scale_per="tensor", rounding="gptq"),
        Uniform(bits=bits, scale_per="group", group_size=draw.randrange(2, 99), symmetric=symmetric),
        Codebook(bits=bits - 1, fisher=symmetric),
    ]
    return draw.choice(found)


def random_activations(draw: random.Random) -> Activations | None:
    bits = draw.randrange(4, 9)
    found = [None, DynamicActivations(bits=bits), StaticActivations(bits=bits), StaticActivations(bits=8, range="mse")]
    return draw.choice(found)


class TestPolicy:
    @pytest.mark.parametrize("seed", range(50))
    def test_it_comes_back_from_json(self, seed: int) -> None:
        policy = random_policy(seed)
        again = Policy.model_validate_json(policy.model_dump_json())
        assert again == policy
        assert again.digest == policy.digest

    def test_its_digest_is_the_sha256_of_canonical_json(self) -> None:
        policy = Policy(sites={"head": Choice(weights=Uniform(bits=4))})
        text = (
            '{"channel_pruning":null,"channels":{},"distillation":null,"dropped":[],"model":null,"sites":{"head":'
            '{"activations":null,"prune":{"kind":"none"},"weights":{"bits":4,"group_size":null,"kind":"uniform",'
            '"rounding":"nearest","scale_per":"channel","symmetric":true}}},"smoothing":null}'
        )
        assert policy.digest == hashlib.sha256(text.encode()).hexdigest()

    def test_equal_policies_have_equal_digests(self) -> None:
        one, other = Choice(weights=Uniform(bits=4)), Choice(prune=Unstructured(ratio=0.5))
        settings = SETTINGS.model_dump()
        pairs = [
            (Policy(sites={"a": one, "b": other}), Policy(sites={"b": other, "a": one})),
            (
                Policy(sites={}, distillation=SETTINGS),
                Policy(sites={}, distillation=Distillation(**settings | {"temperature": 4.0})),
            ),
            (
                Policy(sites={}, distillation=Distillation(**settings | {"alpha": 0.0})),
                Policy(sites={}, distillation=Distillation(**settings | {"alpha": -0.0})),
            ),
            (Policy(sites={}, channels={"g": 0.0}), Policy(sites={}, channels={"g": -0.0})),
            (Policy(sites={}, channels={"g": 0.5, "h": 0.25}), Policy(sites={}, channels={"h": 0.25, "g": 0.5})),
            (Policy(sites={}, smoothing=0), Policy(sites={}, smoothing=-0.0)),
        ]
        for left, right in pairs:
            assert left == right
            assert left.digest == right.digest

    def test_every_setting_changes_the_digest(self) -> None:
        def at(choice: Choice) -> Policy:
            return Policy(sites={"a": choice}, distillation=SETTINGS)

        changed = [
            *(at(Choice(weights=weights)) for weights in DIFFERENT_WEIGHTS),
            *(at(Choice(prune=prune)) for prune in DIFFERENT_PRUNES),
            *(at(Choice(activations=activations)) for activations in DIFFERENT_ACTIVATIONS),
            Policy(sites={"b": Choice()}, distillation=SETTINGS),
            Policy(sites={"a": Choice(), "b": Choice()}, distillation=SETTINGS),
            Policy(sites={"a": Choice()}, channels={"g": 0.5}, distillation=SETTINGS),
            Policy(sites={"a": Choice()}, channels={"h": 0.5}, distillation=SETTINGS),
            *(
                Policy(sites={"a": Choice()}, channels={"g": 0.5}, channel_pruning=how, distillation=SETTINGS)
                for how in (ChannelPruning(), ChannelPruning(criterion="l1"), ChannelPruning(multiple=8))
            ),
            *(
                Policy(sites={"a": Choice()}, dropped=dropped, distillation=SETTINGS)
                for dropped in (("b",), ("c",), ("b", "c"))
            ),
            *(Policy(sites={"a": Choice()}, model=model, distillation=SETTINGS) for model in ("b", "c")),
            *(Policy(sites={"a": Choice()}, smoothing=alpha, distillation=SETTINGS) for alpha in (0, 0.5)),
            Policy(sites={"a": Choice()}),
            *(
                Policy(sites={"a": Choice()}, distillation=Distillation(**SETTINGS.model_dump() | {key: value}))
                for key, value in CHANGED.items()
            ),
        ]
        assert CHANGED.keys() == Distillation.model_fields.keys()
        assert len({policy.digest for policy in changed}) == len(changed)

    def test_it_is_frozen(self) -> None:
        policy = Policy(sites={"a": Choice()})
        with pytest.raises(ValidationError, match="frozen"):
            policy.distillation = SETTINGS

    @pytest.mark.parametrize(
        ("choice", "ratio", "label"),
        [
            (Choice(), 0.0, "float32"),
            (Choice(weights=Float16()), 0.0, "float16"),
            (Choice(prune=Unstructured(ratio=0.25)), 0.25, "float32, 25 % pruned"),
            (Choice(prune=Unstructured(ratio=0.5), weights=Uniform(bits=4)), 0.5, "4 bits, 50 % pruned"),
            (Choice(prune=SemiStructured(n=2, m=4), weights=Codebook(bits=3)), 0.0, "3-bit codebook, 2:4 pruned"),
            (Choice(prune=Threshold(value=1e-3)), 0.0, "float32, pruned below 0.001"),
            (
                Choice(weights=Uniform(bits=8), activations=StaticActivations(bits=8)),
                0.0,
                "8 bits, 8-bit static activations",
            ),
            (Choice(activations=DynamicActivations(bits=4)), 0.0, "float32, 4-bit dynamic activations"),
        ],
    )
    def test_a_choice_has_a_ratio_and_a_label(self, choice: Choice, ratio: float, label: str) -> None:
        assert (choice.ratio, choice.label) == (ratio, label)

    @pytest.mark.parametrize(
        ("kind", "settings"),
        [
            (Unstructured, {"ratio": 0}),
            (Unstructured, {"ratio": 1}),
            (Unstructured, {"ratio": float("nan")}),
            (Uniform, {"bits": 1}),
            (Uniform, {"bits": 9}),
            (Distillation, SETTINGS.model_dump() | {"temperature": 0}),
            (Distillation, SETTINGS.model_dump() | {"temperature": float("inf")}),
            (Distillation, SETTINGS.model_dump() | {"alpha": 1.01}),
            (Distillation, SETTINGS.model_dump() | {"batch_size": 0}),
            (Unstructured, {"ratio": 0.5, "criterion": "l2"}),
            (SemiStructured, {"n": 4, "m": 4}),
            (SemiStructured, {"n": 5, "m": 4}),
            (SemiStructured, {"n": 0, "m": 4}),
            (SemiStructured, {"n": 1, "m": 17}),
            (SemiStructured, {"n": 2}),
            (Threshold, {"value": 0}),
            (Threshold, {"value": float("inf")}),
            (Uniform, {"bits": 4, "group_size": 16}),
            (Uniform, {"bits": 4, "scale_per": "tensor", "group_size": 16}),
            (Uniform, {"bits": 4, "scale_per": "group"}),
            (Uniform, {"bits": 4, "scale_per": "group", "group_size": 1}),
            (Uniform, {"bits": 4, "scale_per": "row"}),
            (Uniform, {"bits": 4, "rounding": "up"}),
            (Codebook, {"bits": 0}),
            (Codebook, {"bits": 9}),
            (Codebook, {"bits": 4, "rounding": "adaround"}),
            (StaticActivations, {"bits": 3}),
            (StaticActivations, {"bits": 9}),
            (StaticActivations, {"bits": 8, "range": "max"}),
            (DynamicActivations, {"bits": 3}),
            (Penalty, {"kind": "l1", "strength": 0}),
            (Penalty, {"kind": "l3", "strength": 1}),
            (ChannelPruning, {"multiple": 0}),
            (ChannelPruning, {"criterion": "magnitude"}),
            (Policy, {"sites": {}, "channels": {"g": float("nan")}}),
            (Policy, {"sites": {}, "channels": {"g": 1.0}}),
            (Policy, {"sites": {}, "channels": {"g": -0.1}}),
            (Policy, {"sites": {}, "smoothing": 1.1}),
            (Policy, {"sites": {}, "smoothing": -0.1}),
            (Policy, {"sites": {}, "model": 3}),
            *(
                (Distillation, SETTINGS.model_dump() | {key: value})
                for key, value in (
                    ("optimizer", "rmsprop"),
                    ("schedule", "step"),
                    ("masks", "free"),
                    ("grids", "free"),
                    ("features", -0.1),
                    ("labels", "none"),
                    ("cache_bytes", -1),
                    ("student_steps", -1),
                    ("penalty", {"kind": "l1"}),
                )
            ),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 5, "ladder": (3,)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": (5, 3)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": (3, 3)}),
            (DistillationRecord, SETTINGS.model_dump() | {"steps": 3, "ladder": ()}),
        ],
    )
    def test_impossible_values_are_refused(self, kind: type[Value], settings: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            kind(**settings)
