"""What a wrong config is told: file, key, what was given, what is allowed, everything at once."""

from pathlib import Path

import pytest

from search.config import load_config
from spaces.errors import ConfigError

CONFIGS = Path(__file__).parent.parent / "configs"
NEEDED = "study: mine\nworkload: package.module:function\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "my.yaml"
    path.write_text(text)
    return path


def refused(path: Path, *overrides: str, **replaced: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides, **replaced)
    return str(caught.value)


# YAML, the key that is named, what was given, what is allowed
BROKEN = {
    "study missing": ("workload: m:f", "study", "nothing", "1 to 100 letters"),
    "study with a slash": ("study: a/b\nworkload: m:f", "study", '"a/b"', "letters, digits, dots"),
    "study a number": ("study: 7\nworkload: m:f", "study", "7 (for text, put it in quotes)", "letters"),
    "study a date": ("study: 2026-01-01\nworkload: m:f", "study", '"2026-01-01"', "put text in quotes"),
    "study too long": (f"study: {'a' * 101}\nworkload: m:f", "study", '"aaa', "1 to 100"),
    "workload missing": ("study: a", "workload", "nothing", "module:function or file.py:function"),
    "workload without a colon": ("study: a\nworkload: module", "workload", '"module"', "one colon"),
    "workload with two colons": ("study: a\nworkload: 'm:f:g'", "workload", '"m:f:g"', "one colon"),
    "workload without a module": ("study: a\nworkload: ':f'", "workload", '":f"', "module:function"),
    "workload with a call": ("study: a\nworkload: m:f()", "workload", '"m:f()"', "module:function"),
    "target unknown": ("target: phone", "target", '"phone"', "storage"),
    "bits too many": ("space: {bits: [4, 9]}", "space.bits[1]", "9", "2 to 8"),
    "bits as text": ("space: {bits: ['4']}", "space.bits[0]", '"4" (text)', "a whole number 2 to 8"),
    "bits a boolean": ("space: {bits: [true]}", "space.bits[0]", "true", "a whole number 2 to 8"),
    "bits a fraction": ("space: {bits: [2.0]}", "space.bits[0]", "2.0", "a whole number 2 to 8"),
    "bits twice": ("space: {bits: [4, 2, 4]}", "space.bits", "[4, 2, 4]", "each value once"),
    "no bits": ("space: {bits: []}", "space.bits", "[]", "a list of one or more, each a whole number 2 to 8"),
    "bits no list": ("space: {bits: 4}", "space.bits", "4", "a list of one or more"),
    "ratio of one": ("space: {ratios: [0, 1]}", "space.ratios[1]", "1", "0 or more and less than 1"),
    "ratio nan": ("space: {ratios: [.nan]}", "space.ratios[0]", "NaN", "a finite number 0 or more"),
    "ratios twice": ("space: {ratios: [0, 0.0]}", "space.ratios", "[0, 0.0]", "each value once"),
    "prune unknown": ("space: {prune: [n:m]}", "space.prune[0]", '"n:m"', "none | unstructured | nm | threshold"),
    "unpruned with ratios": ("space: {prune: [none], ratios: [0.5]}", "space.ratios", "[0.5]", "[0.0] only"),
    "unpruned with a rule": (
        "space: {prune: [none], rules: [{sites: a, ratios: [0.5]}]}",
        "space.rules[0].ratios",
        "[0.5]",
        "[0.0] only",
    ),
    "weights unknown": (
        "space: {weights: [int8]}",
        "space.weights[0]",
        '"int8"',
        "uniform | codebook | float16 | float32",
    ),
    "only patterns with ratios": (
        "space: {prune: [nm], ratios: [0.5]}",
        "space.ratios",
        "[0.5]",
        "[0.0] only, because space.prune has no unstructured",
    ),
    "threshold without thresholds": (
        "space: {prune: [threshold]}",
        "space.thresholds",
        "[]",
        "one or more, because space.prune has threshold",
    ),
    "threshold of zero": ("space: {thresholds: [0]}", "space.thresholds[0]", "0", "more than 0"),
    "pattern that keeps all": ("space: {patterns: [4:4]}", "space.patterns[0]", '"4:4"', "n:m with n below m"),
    "pattern upside down": ("space: {patterns: [4:2]}", "space.patterns[0]", '"4:2"', "such as 2:4"),
    "pattern too long": ("space: {patterns: [8:17]}", "space.patterns[0]", '"8:17"', "m up to 16"),
    "pattern with a dash": ("space: {patterns: [2-4]}", "space.patterns[0]", '"2-4"', "such as 2:4"),
    "pattern twice": ("space: {patterns: [2:4, 02:4]}", "space.patterns", '["2:4", "02:4"]', "each value once"),
    "patterns no list": ("space: {patterns: 2:4}", "space.patterns", '"2:4"', "a list, each n:m"),
    "pattern of a rule": (
        "space: {rules: [{sites: a, patterns: [4:4]}]}",
        "space.rules[0].patterns[0]",
        '"4:4"',
        "n:m with n below m",
    ),
    "criterion unknown": ("space: {criterion: l2}", "space.criterion", '"l2"', "magnitude | random | taylor | apoz"),
    "scale per row": ("space: {scale_per: row}", "space.scale_per", '"row"', "tensor, channel, or how many weights"),
    "scale per weight": ("space: {scale_per: 1}", "space.scale_per", "1", "at least 2"),
    "scale per true": ("space: {scale_per: true}", "space.scale_per", "true", "tensor, channel, or how many"),
    "scale per fraction": ("space: {scale_per: 16.5}", "space.scale_per", "16.5", "tensor, channel, or how many"),
    "symmetric a number": ("space: {symmetric: 1}", "space.symmetric", "1", "true or false"),
    "rounding unknown": ("space: {rounding: up}", "space.rounding", '"up"', "nearest | gptq | adaround"),
    "activations unknown": ("space: {activations: [int8]}", "space.activations[0]", '"int8"', "float | static | dy"),
    "no activations": ("space: {activations: []}", "space.activations", "[]", "a list of one or more"),
    "activation bits too few": ("space: {activation_bits: [3]}", "space.activation_bits[0]", "3", "4 to 8"),
    "activation range unknown": (
        "space: {activation_range: max}",
        "space.activation_range",
        '"max"',
        "minmax | percentile | mse",
    ),
    "smoothing too large": ("space: {smoothing: 2}", "space.smoothing", "2", "0 to 1"),
    "smoothing switched on": ("space: {smoothing: on}", "space.smoothing", "true", "a number 0 to 1 or null"),
    "all channels": ("space: {channels: [1]}", "space.channels[0]", "1", "0 or more and less than 1"),
    "channels no list": ("space: {channels: 0.5}", "space.channels", "0.5", "a list, each a number 0 or more"),
    "channel criterion": ("space: {channel_criterion: best}", "space.channel_criterion", '"best"', "l1 | l2 | random"),
    "channel multiple": ("space: {channel_multiple: 0}", "space.channel_multiple", "0", "1 or more"),
    "blocks a list": ("space: {blocks: [body.1]}", "space.blocks", '["body.1"]', "true or false"),
    "students by name": ("space: {students: half}", "space.students", '"half"', "true or false"),
    "rule with a key of the space": (
        "space: {rules: [{sites: a, activations: [8]}]}",
        "space.rules[0].activations[0]",
        "8",
        "float | static | dynamic",
    ),
    "optimizer unknown": ("distillation: {optimizer: lion}", "distillation.optimizer", '"lion"', "adam | sgd"),
    "schedule unknown": ("distillation: {schedule: 1}", "distillation.schedule", "1", "cosine | linear | constant"),
    "masks unknown": ("distillation: {masks: free}", "distillation.masks", '"free"', "static | dynamic | gradual"),
    "grids unknown": ("distillation: {grids: free}", "distillation.grids", '"free"', "fixed | learned"),
    "rewind a number": ("distillation: {rewind: 1}", "distillation.rewind", "1", "true or false"),
    "features negative": ("distillation: {features: -1}", "distillation.features", "-1", "0 or more"),
    "labels unknown": ("distillation: {labels: mine}", "distillation.labels", '"mine"', "given | teacher"),
    "penalty by name": ("distillation: {penalty: l1}", "distillation.penalty", '"l1"', "keys and values (kind, str"),
    "penalty half said": (
        "distillation: {penalty: {kind: l1}}",
        "distillation.penalty.strength",
        "nothing",
        "a number more than 0",
    ),
    "penalty unknown": (
        "distillation: {penalty: {kind: l3, strength: 1}}",
        "distillation.penalty.kind",
        '"l3"',
        "l1 | group_lasso | batchnorm_l1",
    ),
    "penalty of nothing": (
        "distillation: {penalty: {kind: l1, strength: 0}}",
        "distillation.penalty.strength",
        "0",
        "more than 0",
    ),
    "teacher cache as text": (
        "distillation: {cache_bytes: lots}",
        "distillation.cache_bytes",
        '"lots"',
        "a number of bytes, also as 500MB or 2GB",
    ),
    "student steps negative": ("distillation: {student_steps: -1}", "distillation.student_steps", "-1", "0 or more"),
    "coding unknown": ("coding: zip", "coding", '"zip"', "packed | entropy or null"),
    "exclude no list": ("space: {exclude: 'fc*'}", "space.exclude", '"fc*"', "a list, each a glob"),
    "rule without sites": ("space: {rules: [{bits: [4]}]}", "space.rules[0].sites", "nothing", "a glob"),
    "rule that is empty": ("space: {rules: [{sites: fc}]}", "space.rules[0]", '{"sites": "fc"}', "at least one"),
    "rule with wrong bits": ("space: {rules: [{sites: fc, bits: [1]}]}", "space.rules[0].bits[0]", "1", "2 to 8"),
    "section left empty": ("space:", "space", "null (nothing)", "keys and values (activation_bits, "),
    "section a number": ("budget: 3", "budget", "3", "keys and values (focus, patience, timeout, "),
    "temperature no range": ("distillation: {temperature: 4}", "distillation.temperature", "4", "[low, high]"),
    "temperature of zero": ("distillation: {temperature: [0, 4]}", "distillation.temperature[0]", "0", "more than 0"),
    "alpha backwards": ("distillation: {alpha: [1, 0]}", "distillation.alpha", "[1, 0]", "lower number first"),
    "alpha too large": ("distillation: {alpha: [0, 2]}", "distillation.alpha[1]", "2", "0 to 1"),
    "learning rate as text": (
        "distillation: {learning_rate: 1e-3}",
        "distillation.learning_rate",
        '"1e-3" (text to YAML: write 1.0e-3)',
        "a number more than 0 and up to 1",
    ),
    "learning rate of zero": (
        "distillation: {learning_rate: 0}",
        "distillation.learning_rate",
        "0",
        "more than 0 and up to 1",
    ),
    "batch of zero": ("distillation: {batch_size: 0}", "distillation.batch_size", "0", "1 or more"),
    "steps that stand still": ("distillation: {steps: [9, 9]}", "distillation.steps", "[9, 9]", "that increase"),
    "share too large": ("distillation: {share: 1.5}", "distillation.share", "1.5", "0 to 1"),
    "share infinite": ("distillation: {share: .inf}", "distillation.share", "Infinity", "a finite number 0 to 1"),
    "objectives reversed": (
        "objectives: [bytes, accuracy]",
        "objectives",
        '["bytes", "accuracy"]',
        "[accuracy, bytes]",
    ),
    "sampler unknown": ("sampler: {name: nsga}", "sampler.name", '"nsga"', "did you mean nsga2?"),
    "sampler half a path": ("sampler: {name: optuna.}", "sampler.name", '"optuna."', "a dotted path"),
    "sampler option nan": ("sampler: {options: {a: [.nan]}}", "sampler.options", "nan", "finite numbers"),
    "predicted negative": ("sampler: {predicted: -1}", "sampler.predicted", "-1", "0 or more"),
    "no trials": ("budget: {trials: 0}", "budget.trials", "0", "1 or more"),
    "timeout in days": ("budget: {timeout: 3d}", "budget.timeout", '"3d"', '"90s", "30m" or "2h"'),
    "timeout of zero": ("budget: {timeout: 0m}", "budget.timeout", "0.0", "more than 0 seconds"),
    "until no time": ("budget: {until: soon}", "budget.until", '"soon"', 'a time such as "18:00"'),
    "until in no day": ("budget: {until: '24:00'}", "budget.until", '"24:00"', 'a time such as "18:00"'),
    "until a number": ("budget: {until: 18}", "budget.until", "18", '"2026-12-24 18:00"'),
    "until a date": ("budget: {until: '2026-12-24'}", "budget.until", '"2026-12-24"', "a date and time such as"),
    "until before time": ("budget: {until: '0001-01-01 00:00'}", "budget.until", '"0001', "a date and time such as"),
    "patience a number": ("budget: {patience: 40}", "budget.patience", "40", "keys and values (candidates, growth)"),
    "patience of zero": ("budget: {patience: {candidates: 0}}", "budget.patience.candidates", "0", "1 or more"),
    "patience with shrinking": ("budget: {patience: {growth: -0.1}}", "budget.patience.growth", "-0.1", "0 to 1"),
    "focus one size": ("budget: {focus: 40kB}", "budget.focus", '"40kB"', "[low, high] in bytes"),
    "focus a number": ("budget: {focus: 3}", "budget.focus", "3", "40kB..120kB"),
    "focus of three": ("budget: {focus: [1, 2, 3]}", "budget.focus", "[1, 2, 3]", "[low, high] in bytes"),
    "focus backwards": ("budget: {focus: 120kB..40kB}", "budget.focus", '"120kB..40kB"', "low below high"),
    "focus of no width": ("budget: {focus: [9, 9]}", "budget.focus", "[9, 9]", "low below high"),
    "focus with half a unit": ("budget: {focus: 40..120kB}", "budget.focus", '"40..120kB"', "with both units"),
    "focus of no sizes": ("budget: {focus: small..large}", "budget.focus", '"small..large"', "40kB..120kB"),
    "focus of fractions": ("budget: {focus: [0.5, 9]}", "budget.focus", "[0.5, 9]", "[low, high] in bytes"),
    "focus beyond all files": (f"budget: {{focus: [1, {2**63}]}}", "budget.focus", f"[1, {2**63}]", "[low, high]"),
    "focus negative": ("budget: {focus: [-1, 9]}", "budget.focus", "[-1, 9]", "[low, high] in bytes"),
    "workers negative": ("workers: -1", "workers", "-1", "0 or more"),
    "threads of zero": ("threads: 0", "threads", "0", "1 or more"),
    "seed too large": (f"seed: {2**63}", "seed", str(2**63), f"0 to {2**63 - 1}"),
    "window null": ("window: null", "window", "null (nothing)", "a whole number 1 or more"),
    "chunk as text": ("chunk: many", "chunk", '"many" (text)', "a whole number 1 or more"),
    "storage no URL": ("storage: my.db", "storage", "text that is not a URL", "sqlite:///slimfront.db"),
    "cache empty": ("cache: ''", "cache.folder", '""', "a folder or null"),
    "cache a number": ("cache: 3", "cache", "3", "a folder, or keys and values (folder, max_bytes)"),
    "cache a list": ("cache: [here]", "cache", '["here"]', "a folder, or keys and values (folder, max_bytes)"),
    "cache folder a number": ("cache: {folder: 3}", "cache.folder", "3 (for text, put it in quotes)", "a folder or"),
    "cache bound in words": ("cache: {max_bytes: 2GiB}", "cache.max_bytes", '"2GiB"', "500MB or 2GB"),
    "cache bound negative": ("cache: {max_bytes: -1}", "cache.max_bytes", "-1", "a number of bytes"),
    "cache bound a fraction": ("cache: {max_bytes: 1.5}", "cache.max_bytes", "1.5", "a number of bytes"),
    "cache bound true": ("cache: {max_bytes: true}", "cache.max_bytes", "true", "a number of bytes"),
    "device unknown": ("device: gpu", "device", '"gpu"', "auto | cpu | cuda"),
    "key twice": ("seed: 1\nseed: 1", "seed", "twice (lines 3 and 4)", "once"),
    "inner key twice": ("budget: {trials: 1, trials: 2}", "budget.trials", "twice", "once"),
    "key a number": ("1: 2", "1", "a key that YAML reads as int", "text"),
}


@pytest.mark.parametrize(("text", "key", "given", "allowed"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_config_says_file_key_given_and_allowed(
    text: str, key: str, given: str, allowed: str, tmp_path: Path
) -> None:
    path = write(tmp_path, text if "study:" in text or "workload:" in text else NEEDED + text)
    message = refused(path)
    first, line, *more = message.splitlines()
    assert first == f"{path} has 1 problem:"
    assert not more
    assert line.startswith(f"  {key}: given {given}")
    assert allowed in line.split(", allowed ", 1)[1]
    assert not any(jargon in message for jargon in ("pydantic", "https:", "Input should", "tuple"))


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, NEEDED + "space: {bits: [4, 9]}\nsampler: {nane: tpe}\nseed: 0\nseed: -1\n")
    assert refused(path, "window=0", "chunk", trials=0) == "\n".join(
        [
            f"{path} with --set and --trials has 7 problems:",
            "  seed: given twice (lines 5 and 6), allowed once",
            '  --set: given "chunk", allowed KEY=VALUE such as space.bits=[4, 8]',
            "  space.bits[1]: given 9, allowed 2 to 8",
            "  sampler.nane: unknown key, did you mean sampler.name? "
            "(allowed: measured, name, options, predicted, samples, uniform)",
            "  budget.trials (from --trials): given 0, allowed 1 or more",
            "  seed: given -1, allowed 0 to 9223372036854775807",
            "  window (from --set): given 0, allowed 1 or more",
        ]
    )


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("thread: 2", "thread: unknown key, did you mean threads?"),
        ("trials: 9", "trials: unknown key, did you mean budget.trials?"),
        ("trial: 9", "trial: unknown key, did you mean budget.trials?"),
        ("Seed: 9", "Seed: unknown key, did you mean seed?"),
        ("distillation: {learning-rate: 1}", "unknown key, did you mean distillation.learning_rate?"),
        (
            "budget: {seed: 1}",
            "budget.seed: unknown key, did you mean seed? (allowed: focus, patience, timeout, trials, until)",
        ),
        ("space: {rules: [{site: a, bits: [4]}]}", "did you mean space.rules[0].sites?"),
        ("bits: [4]", "bits: unknown key, did you mean space.bits or space.rules[].bits?"),
        ("patterns: [2:4]", "patterns: unknown key, did you mean space.patterns or space.rules[].patterns?"),
        ("max_bytes: 1GB", "max_bytes: unknown key, did you mean cache.max_bytes?"),
        ("cache: {bytes: 1}", "cache.bytes: unknown key, did you mean cache.max_bytes? (allowed: folder, max_bytes)"),
        ("strength: 1", "strength: unknown key, did you mean distillation.penalty.strength?"),
        (
            "space: {rules: [{sites: a, fisher: true}]}",
            "space.rules[0].fisher: unknown key, did you mean space.fisher?",
        ),
        ("colour: red", "colour: unknown key (allowed: budget, cache,"),
    ],
)
def test_an_unknown_key_names_the_nearest_one(text: str, line: str, tmp_path: Path) -> None:
    assert line in refused(write(tmp_path, NEEDED + text))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("study: a\nspace: [1}", "line 2, column 10"),
        ("study: a\n\tseed: 1", "line 2, column 1"),
        ("study: a\nseed: é\x01", "line 2, column 8"),
        ("study: a\n---\nstudy: b", "line 2, column 1"),
        ("study: *nowhere", "line 1, column 8"),
        ("<<: 3", "line 1, column 5"),
        ("space: &x [*x]", "a value contains itself"),
        ("space: " + "[" * 100_000, "line 1, column 57"),
        ("seed: 0x_", "not valid YAML"),
    ],
)
def test_what_is_no_yaml_is_said_with_file_line_and_column(text: str, where: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert where in message


@pytest.mark.parametrize(
    ("text", "given"), [("", "an empty file"), ("# only this\n", "an empty file"), ("- 1", "[1]"), ("a", '"a"')]
)
def test_the_top_has_keys_and_values(text: str, given: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    assert refused(path).startswith(f"{path}: given {given}, allowed keys and values")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    (tmp_path / "bytes.yaml").write_bytes(b"study: \xff")
    assert "bytes.yaml: not a text file: byte 7 is not UTF-8" in refused(tmp_path / "bytes.yaml")


def test_a_missing_file_names_the_near_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, NEEDED)
    assert refused(tmp_path / "mmy.yaml").endswith(f"there is no such file; did you mean {path}?")
    assert refused(tmp_path / "unlike.yml") == f"{tmp_path / 'unlike.yml'}: there is no such file"
    monkeypatch.chdir(CONFIGS.parent)
    for name in ("quickstart", "quikstart.yaml", "quickstart.yml"):
        assert refused(Path(name)).endswith("there is no such file; did you mean configs/quickstart.yaml?")


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("sampler.nane=tpe", "sampler.nane (from --set): unknown key, did you mean sampler.name?"),
        ("trials=3", "trials (from --set): unknown key, did you mean budget.trials?"),
        ("space.bits=[1]", "space.bits[0] (from --set): given 1, allowed 2 to 8"),
        ("seed", '--set: given "seed", allowed KEY=VALUE'),
        ("a..b=1", '--set: given "a..b=1", allowed KEY=VALUE'),
        ("seed=[1", "--set seed: not valid YAML at line"),
        ("sampler.options={a: 1, a: 2}", "--set sampler.options.a: given twice"),
        ("study.x=1", "study.x (from --set): given a key below study, which is no section"),
        ("budget.patience=40", "budget.patience (from --set): given 40, allowed keys and values (candidates, growth)"),
        ("window.x=1", 'window (from --set): given {"x": 1}, allowed a whole number 1 or more'),
    ],
)
def test_what_is_wrong_with_set_names_set(override: str, line: str, tmp_path: Path) -> None:
    assert line in refused(write(tmp_path, NEEDED), override)


@pytest.mark.parametrize(
    "text",
    [
        "storage: postgresql:me:secret@host",
        "storage: [postgresql://me:secret@host/db]",
        "study: postgresql://me:secret@host/db",
        "storages: postgresql://me:secret@host/db",
        "sampler: {name: 'postgresql://me:secret@host/db', options: [postgresql://me:secret@host/db]}",
    ],
)
def test_a_password_is_in_no_error_nor_in_its_cause(text: str, tmp_path: Path) -> None:
    needed = "workload: m:f\n" if "study" in text else NEEDED
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, needed + text), ["storage postgresql://me:secret@host/db"])
    assert "secret" not in str(caught.value)
    assert "secret" not in str(caught.value.__cause__)


def test_a_value_with_a_tag_is_refused(tmp_path: Path) -> None:
    message = refused(write(tmp_path, NEEDED + "space: {bits: !!set {4}}\nseed: !!int one\nsampler: !new {}"))
    assert "space.bits: given a value that YAML reads as set (line 3), allowed lists, keys" in message
    assert 'seed: given "one" that YAML reads as int (line 4), allowed numbers and text' in message
    assert "sampler: given a value that YAML reads as !new (line 5), allowed lists, keys" in message
