"""A config as a value: defaults, what the command line changes, what identifies a search."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from search.config import Config, difference, load_config, storage_url
from search.config_errors import shown
from search.config_sections import CacheConfig, DistillationConfig, PatienceConfig, PenaltyConfig, SpaceConfig
from spaces.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
NEEDED = "study: mine\nworkload: package.module:function\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def read(folder: Path, text: str = "", *overrides: str, **replaced: object) -> Config:
    return load_config(write(folder, NEEDED + text), overrides, **replaced)


def test_only_study_and_workload_are_needed_and_the_rest_has_defaults(tmp_path: Path) -> None:
    config = read(tmp_path)
    assert config.document() == {
        "study": "mine",
        "workload": "package.module:function",
        "target": "storage",
        "space": {
            "bits": [2, 3, 4, 5, 6, 7, 8],
            "ratios": [0.0, 0.16, 0.32, 0.48, 0.64, 0.8, 0.96],
            "prune": ["unstructured"],
            "weights": ["uniform"],
            "patterns": ["2:4"],
            "thresholds": [],
            "criterion": "hessian",
            "scale_per": "channel",
            "symmetric": True,
            "rounding": "gptq",
            "fisher": False,
            "activations": ["float"],
            "activation_bits": [8],
            "activation_range": "mse",
            "smoothing": None,
            "channels": [],
            "channel_criterion": "wanda",
            "channel_refit": True,
            "channel_multiple": None,
            "blocks": False,
            "students": True,
            "exclude": [],
            "rules": [],
        },
        "distillation": {
            "temperature": [1.0, 8.0],
            "alpha": [0.5, 1.0],
            "learning_rate": 0.001,
            "batch_size": 64,
            "steps": [60],
            "optimizer": "adam",
            "schedule": "cosine",
            "masks": "static",
            "grids": "fixed",
            "rewind": False,
            "features": 0.0,
            "labels": "given",
            "penalty": None,
            "cache_bytes": 10**9,
            "student_steps": 600,
            "share": 0.33,
        },
        "racing": {"confidence": 0.95},
        "objectives": ["accuracy", "bytes"],
        "sampler": {
            "name": "front",
            "options": {},
            "uniform": 10,
            "predicted": 30,
            "samples": 16,
            "measured": 12,
        },
        "budget": {"trials": 120, "timeout": None, "until": None, "patience": None, "focus": None, "grace": 30.0},
        "workers": 2,
        "engine": "pool",
        "ray": {
            "address": None,
            "jobs": None,
            "resources": {"cpus": 1.0, "gpus": None, "memory": None, "custom": {}},
            "runtime_env": {"working_dir": None, "py_modules": [], "pip": [], "excludes": []},
        },
        "threads": 1,
        "seed": 0,
        "window": 8,
        "chunk": 100,
        "coding": None,
        "cache": {"folder": None, "max_bytes": 2 * 10**9},
        "device": "auto",
    }
    assert Config.model_validate(config.document()).document() == config.document()


def test_lists_become_sorted_tuples_and_whole_numbers_fit_where_fractions_do(tmp_path: Path) -> None:
    config = read(tmp_path, "space: {bits: [8, 2], ratios: [0.5, -0.0]}\ndistillation: {alpha: [0, 1]}")
    assert config.space.bits == (2, 8)
    assert shown(config.space.ratios) == "[0.0, 0.5]"
    assert shown(config.distillation.alpha) == "[0.0, 1.0]"
    assert read(tmp_path, "distillation: {steps: []}").distillation.steps == ()


@pytest.mark.parametrize("prune", ["none", "nm", "nm, none"])
def test_what_prunes_nothing_at_a_ratio_is_a_ratio_of_zero(prune: str, tmp_path: Path) -> None:
    config = read(tmp_path, f"space: {{prune: [{prune}]}}")
    assert config.space.ratios == (0.0,)
    assert SpaceConfig(prune=config.space.prune) == config.space
    assert read(tmp_path, f"space: {{prune: [{prune}, unstructured]}}").space.ratios == SpaceConfig().ratios


def test_no_confidence_is_no_races(tmp_path: Path) -> None:
    assert read(tmp_path, "racing: {confidence: 0.9}").racing.confidence == 0.9
    for text in ("racing: null", "racing: {confidence: null}", "racing:"):
        assert read(tmp_path, text).racing.confidence is None
    for wrong in ("0.5", "1", "95"):
        with pytest.raises(ConfigError, match=r"racing\.confidence: given"):
            read(tmp_path, f"racing: {{confidence: {wrong}}}")


def test_a_pattern_is_no_number_in_base_60(tmp_path: Path) -> None:
    for text in ("[2:4, 1:16]", "['2:4', \"1:16\"]", "\n  - 2:4\n  - 01:16"):
        assert read(tmp_path, f"space:\n patterns: {text}").space.patterns == ("2:4", "1:16")
    assert read(tmp_path, "", "space.patterns=[8:16]").space.patterns == ("8:16",)


@pytest.mark.parametrize(("text", "expected"), [("tensor", "tensor"), ("channel", "channel"), ("32", 32)])
def test_a_scale_is_for_a_tensor_a_channel_or_so_many_weights(text: str, expected: object, tmp_path: Path) -> None:
    config = read(tmp_path, f"space: {{scale_per: {text}, rules: [{{sites: a, scale_per: {text}}}]}}")
    assert (config.space.scale_per, config.space.rules[0].scale_per) == (expected, expected)


@pytest.mark.parametrize(
    ("text", "count"),
    [("2GB", 2 * 10**9), ("500 MB", 5 * 10**8), ("1.5kB", 1500), ("0.1TB", 10**11), ("7B", 7), ("7", 7), ("0", 0)],
)
def test_a_count_of_bytes_has_a_unit_or_none(text: str, count: int, tmp_path: Path) -> None:
    config = read(tmp_path, f"cache: {{max_bytes: {text}}}\ndistillation: {{cache_bytes: {text}}}")
    assert (config.cache.max_bytes, config.distillation.cache_bytes) == (count, count)
    assert read(tmp_path, f"cache: {{max_bytes: {'9' * 400}GB}}").cache.max_bytes > 10**400


def test_a_penalty_is_a_section(tmp_path: Path) -> None:
    config = read(tmp_path, "distillation: {penalty: {kind: group_lasso, strength: 0.001}}")
    assert config.distillation.penalty == PenaltyConfig(kind="group_lasso", strength=0.001)
    assert read(tmp_path, "", "distillation.penalty.kind=l1", "distillation.penalty.strength=2").distillation.penalty


@pytest.mark.parametrize(
    ("text", "coding"),
    [
        ("", "entropy"),
        ("coding: packed", "packed"),
        ("target: onnxruntime-cpu", "packed"),
        ("target: onnxruntime-cpu\ncoding: entropy", "entropy"),
    ],
)
def test_the_coding_is_the_configs_else_the_targets(text: str, coding: str, tmp_path: Path) -> None:
    assert read(tmp_path, text).resolved_coding() == coding


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90.0), ("30m", 1800.0), ("2h", 7200.0), ("1.5h", 5400.0), ("45", 45.0)]
)
def test_a_timeout_is_kept_in_seconds(text: str, seconds: float, tmp_path: Path) -> None:
    assert read(tmp_path, f"budget: {{timeout: {text}}}").budget.timeout == seconds
    assert read(tmp_path, timeout=text).budget.timeout == seconds


@pytest.mark.parametrize("text", ["18:00", "6:30", "2026-12-24 18:00", "2026-12-24T18:00:00+01:00", "00:00"])
def test_a_time_to_end_is_kept_as_it_is(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, f"budget: {{until: '{text}'}}").budget.until == text
    if text.count(":") == 1:  # with seconds and a date YAML has a type of its own, and says that quotes are missing
        assert read(tmp_path, f"budget:\n  until: {text}").budget.until == text  # no number in base 60
    assert read(tmp_path, until=text).budget.until == text


def test_patience_is_a_section_that_the_command_line_makes(tmp_path: Path) -> None:
    assert read(tmp_path, "budget: {patience: {}}").budget.patience == PatienceConfig(candidates=40, growth=0.001)
    text = "budget: {patience: {candidates: 9, growth: 0}}"
    assert read(tmp_path, text).budget.patience == PatienceConfig(candidates=9, growth=0)
    assert read(tmp_path, text, patience=30).budget.patience == PatienceConfig(candidates=30, growth=0)
    assert read(tmp_path, text, "budget.patience=null").budget.patience is None
    for nothing in ("", "budget: {patience: null}", "budget:"):
        assert read(tmp_path, nothing, patience=30).budget.patience == PatienceConfig(candidates=30)


@pytest.mark.parametrize(
    ("text", "focus"),
    [
        ("[40000, 120000]", (40_000, 120_000)),
        ("40kB..120kB", (40_000, 120_000)),
        ("40 kB .. 0.12 MB", (40_000, 120_000)),
        ("1KiB..2KiB", (1024, 2048)),
        ("40000..120000", (40_000, 120_000)),
        ("[0, 120kB]", (0, 120_000)),
        ("null", None),
    ],
)
def test_a_focus_is_a_range_of_bytes(text: str, focus: tuple[int, int] | None, tmp_path: Path) -> None:
    assert read(tmp_path, f"budget: {{focus: {text}}}").budget.focus == focus
    if ".." in text:
        assert read(tmp_path, "budget: {focus: [1, 2]}", focus=text).budget.focus == focus


def test_a_config_is_frozen_through_and_through(tmp_path: Path) -> None:
    config = read(tmp_path, "space: {rules: [{sites: fc, bits: [4]}]}")
    parts: list[BaseModel] = [config, config.space, config.space.rules[0]]
    for part in [*parts, config.distillation, config.sampler, config.budget, config.cache]:
        for name in type(part).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(part, name, None)
            assert not isinstance(getattr(part, name), list)


def test_a_workload_file_is_looked_for_beside_the_config(tmp_path: Path) -> None:
    path = write(tmp_path, "study: mine\nworkload: models/net.py:make")
    with pytest.raises(ConfigError, match=f"there is none at {tmp_path / 'models/net.py'}"):
        load_config(path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/net.py").touch()
    config = load_config(path)
    assert config.workload == config.fingerprint()["workload"] == "models/net.py:make"
    assert config.workload_entry() == f"{(tmp_path / 'models/net.py').resolve()}:make"
    assert pickle.loads(pickle.dumps(config)).workload_entry() == config.workload_entry()
    assert read(tmp_path).workload_entry() == "package.module:function"


def test_the_storage_is_the_configs_else_the_environments_else_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLIMFRONT_STORAGE", raising=False)
    assert read(tmp_path).resolved_storage() == storage_url() == "sqlite:///slimfront.db"
    monkeypatch.setenv("SLIMFRONT_STORAGE", "sqlite:///other.db")
    assert read(tmp_path).resolved_storage() == storage_url() == "sqlite:///other.db"
    assert read(tmp_path, "storage: mysql://h/d").resolved_storage() == storage_url("mysql://h/d")
    monkeypatch.setenv("SLIMFRONT_STORAGE", "other.db")
    with pytest.raises(ConfigError, match="SLIMFRONT_STORAGE: given text that is not a URL"):
        read(tmp_path).resolved_storage()
    with pytest.raises(ConfigError, match="--storage: given text that is not a URL"):
        storage_url("my.db")


def test_the_cache_is_the_configs_else_the_environments_else_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SLIMFRONT_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert read(tmp_path).cache_folder() == tmp_path / "home/.cache/slimfront"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert read(tmp_path).cache_folder() == tmp_path / "home/.cache/slimfront"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert read(tmp_path).cache_folder() == tmp_path / "xdg/slimfront"
    monkeypatch.setenv("SLIMFRONT_CACHE", "~/packed")
    assert read(tmp_path).cache_folder() == tmp_path / "home/packed"
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path, "cache: here").cache_folder() == tmp_path / "here"
    assert read(tmp_path, "cache: {folder: here}") == read(tmp_path, "cache: here")
    assert read(tmp_path, "cache: {max_bytes: 1}").cache_folder() == tmp_path / "home/packed"
    assert Config(study="a", workload="m:f", cache=CacheConfig(folder="here")).cache_folder() == tmp_path / "here"
    with pytest.raises(ConfigError, match="cache: given ~nobody-of-that-name/x"):
        read(tmp_path, "cache: ~nobody-of-that-name/x").cache_folder()


def test_a_password_is_in_no_printout_and_no_document(tmp_path: Path) -> None:
    text = """
storage: postgresql://me:secret@host/db
cache: {shared: s3://key:secret@bucket/folder}
ray: {runtime_env: {env_vars: {TOKEN: secret}}}
"""
    config = read(tmp_path, text)
    assert config.resolved_storage() == "postgresql://me:secret@host/db"
    assert config.cache.shared == "s3://key:secret@bucket/folder"
    assert config.ray.runtime_env.env_vars == {"TOKEN": "secret"}
    assert "secret" not in f"{config!r} {config} {config.document()} {config.fingerprint()}"


def test_the_fingerprint_is_what_determines_the_search(tmp_path: Path) -> None:
    config = read(tmp_path)
    same = read(
        tmp_path,
        "storage: mysql://h/d\ncache: {folder: here, max_bytes: 0, shared: s3://a/b}\n"
        "budget: {grace: 0}\nengine: tune\nray: {address: auto, resources: {cpus: 2}}",
        trials=1,
        timeout=5,
        until="18:00",
        patience=3,
        focus="1kB..2kB",
        workers=7,
        storage="sqlite:///x.db",
    )
    assert config.fingerprint() == same.fingerprint()
    stored = json.loads(json.dumps(config.fingerprint()))
    assert difference(stored, config.fingerprint()) == []
    left_out = {"budget", "workers", "engine", "ray", "storage", "cache"}
    assert stored.keys() == Config.model_fields.keys() - left_out
    for override in (
        "space.bits=[4]",
        "seed=1",
        "window=9",
        "threads=2",
        "chunk=7",
        "racing.confidence=0.9",
        "device=cpu",
        "sampler.uniform=0",
        "coding=packed",
        "target=onnxruntime-cpu",
        "space.criterion=wanda",
        "space.patterns=[1:4]",
        "space.channels=[0.5]",
        "space.smoothing=0.5",
        "distillation.masks=gradual",
        "distillation.penalty={kind: l1, strength: 1}",
    ):
        key = override.partition("=")[0]
        assert [line.split(":")[0] for line in difference(stored, read(tmp_path, "", override).fingerprint())] == [key]


def test_difference_has_a_line_for_each_key() -> None:
    stored: Mapping[str, Any] = {
        "space": {"bits": [2, 4], "old": 1},
        "seed": 0,
        "name": "a",
        "gone": {"x": None},
    }
    given: Mapping[str, Any] = {"space": {"bits": [2, 8]}, "seed": 0, "name": None, "new": True}
    assert difference(stored, given) == [
        "space.bits: stored [2, 4], given [2, 8]",
        "space.old: stored 1, not given",
        'name: stored "a", given null',
        'gone: stored {"x": null}, not given',
        "new: not stored, given true",
    ]


def test_every_key_is_described_in_the_json_schema() -> None:
    schema = Config.model_json_schema()
    json.dumps(schema)
    sections = {"Config": schema, **schema["$defs"]}
    assert len(sections) == 13
    for name, section in sections.items():
        assert section["additionalProperties"] is False, name
        assert section["description"], name
        for key, value in section["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    assert schema["required"] == ["study", "workload"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
def test_the_configs_that_ship_are_valid_and_every_number_says_why(path: Path) -> None:
    config = load_config(path)
    assert config.study == path.stem
    before = ""
    for line in path.read_text().splitlines():
        value, _, comment = line.partition("#")
        if re.search(r"(?<![\w.])\d", value):
            assert comment or before.strip().startswith("#"), line
        before = line


def test_distillation_stands_alone() -> None:
    assert DistillationConfig() == DistillationConfig(temperature=(1, 8), steps=(60,))


def test_reading_a_config_imports_no_torch_optuna_or_ray() -> None:
    code = (
        "import sys; from pathlib import Path; from search.config import load_config;"
        "load_config(Path(sys.argv[1]));"
        "print([name for name in ('torch', 'optuna', 'ray', 'sqlalchemy', 'numpy') if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(CONFIGS / "quickstart.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
