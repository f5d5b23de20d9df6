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
    "section a number": ("budget: 3", "budget", "3", "keys and values (focus, grace, patience, "),
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
    "cache a number": ("cache: 3", "cache", "3", "a folder, or keys and values (folder, max_bytes, shared)"),
    "cache a list": ("cache: [here]", "cache", "a list", "a folder, or keys and values (folder, max_bytes, shared)"),
    "cache folder a number": ("cache: {folder: 3}", "cache.folder", "3 (for text, put it in quotes)", "a folder or"),
    "cache bound in words": ("cache: {max_bytes: 2GiB}", "cache.max_bytes", '"2GiB"', "500MB or 2GB"),
    "cache bound negative": ("cache: {max_bytes: -1}", "cache.max_bytes", "-1", "a number of bytes"),
    "cache bound a fraction": ("cache: {max_bytes: 1.5}", "cache.max_bytes", "1.5", "a number of bytes"),
    "cache bound true": ("cache: {max_bytes: true}", "cache.max_bytes", "true", "a number of bytes"),
    "shared a number": ("cache: {shared: 3}", "cache.shared", "a number", "an fsspec URL such as s3://bucket/folder"),
    "shared empty": ("cache: {shared: ''}", "cache.shared", "an empty text", "a folder, or an fsspec URL"),
    "grace in days": ("budget: {grace: 3d}", "budget.grace", '"3d"', '0 seconds or more, as a number or as "30s"'),
    "grace negative": ("budget: {grace: -1}", "budget.grace", "-1", "0 seconds or more"),
    "grace null": ("budget: {grace: null}", "budget.grace", "null (nothing)", "0 seconds or more"),
    "engine unknown": ("engine: dask", "engine", '"dask"', "pool | tune"),
    "ray by name": ("ray: auto", "ray", '"auto"', "keys and values (address, jobs, resources, runtime_env)"),
    "address by name": ("ray: {address: local}", "ray.address", '"local"', "auto, ray://HOST:PORT, HOST:PORT, or null"),
    "address without a port": ("ray: {address: 'ray://head'}", "ray.address", '"ray://head"', "ray://HOST:PORT"),
    "address a port": ("ray: {address: 6379}", "ray.address", "6379", "auto, ray://HOST:PORT, HOST:PORT, or null"),
    "jobs no URL": (
        "ray: {jobs: 'head:8265'}",
        "ray.jobs",
        '"head:8265"',
        "an HTTP or HTTPS URL such as http://head:8265, or null",
    ),
    "no CPUs": ("ray: {resources: {cpus: 0}}", "ray.resources.cpus", "0", "more than 0"),
    "a CPU and a half": ("ray: {resources: {cpus: 1.5}}", "ray.resources.cpus", "1.5", "a share of one, or a whole"),
    "a GPU and a half": ("ray: {resources: {gpus: 1.5}}", "ray.resources.gpus", "1.5", "a share of one, or a whole"),
    "GPUs negative": ("ray: {resources: {gpus: -1}}", "ray.resources.gpus", "-1", "0 or more"),
    "memory in words": ("ray: {resources: {memory: lots}}", "ray.resources.memory", '"lots"', "500MB or 2GB"),
    "no memory": ("ray: {resources: {memory: -1}}", "ray.resources.memory", "-1", "a number of bytes"),
    "none of a resource": ("ray: {resources: {custom: {a: 0}}}", "ray.resources.custom.a", "0", "more than 0"),
    "a resource by name": (
        "ray: {resources: {custom: a}}",
        "ray.resources.custom",
        '"a"',
        "names and values, each a number more than 0",
    ),
    "folder of workers empty": (
        "ray: {runtime_env: {working_dir: ''}}",
        "ray.runtime_env.working_dir",
        '""',
        "a folder or null",
    ),
    "packages no list": ("ray: {runtime_env: {pip: a}}", "ray.runtime_env.pip", '"a"', "a list, each text"),
    "modules no list": ("ray: {runtime_env: {py_modules: a}}", "ray.runtime_env.py_modules", '"a"', "a list, each a"),
    "excludes a number": ("ray: {runtime_env: {excludes: [3]}}", "ray.runtime_env.excludes[0]", "3", "text"),
    "variable a number": (
        "ray: {runtime_env: {env_vars: {LEVEL: 3}}}",
        "ray.runtime_env.env_vars.LEVEL",
        "a number",
        "names and values, both text: write numbers in quotes",
    ),
    "variable of no name": (
        "ray: {runtime_env: {env_vars: {A=B: c}}}",
        "ray.runtime_env.env_vars.A=B",
        "another name",
        "names of variables, without =",
    ),
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
            "budget.seed: unknown key, did you mean seed? (allowed: focus, grace, patience, timeout, trials, until)",
        ),
        ("space: {rules: [{site: a, bits: [4]}]}", "did you mean space.rules[0].sites?"),
        ("bits: [4]", "bits: unknown key, did you mean space.bits or space.rules[].bits?"),
        ("patterns: [2:4]", "patterns: unknown key, did you mean space.patterns or space.rules[].patterns?"),
        ("max_bytes: 1GB", "max_bytes: unknown key, did you mean cache.max_bytes?"),
        (
            "cache: {bytes: 1}",
            "cache.bytes: unknown key, did you mean cache.max_bytes? (allowed: folder, max_bytes, shared)",
        ),
        ("shared: a", "shared: unknown key, did you mean cache.shared?"),
        ("ray: {env_vars: {A: b}}", "ray.env_vars: unknown key, did you mean ray.runtime_env.env_vars?"),
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
    "text",
    [
        "storage: [postgresql://me:hunter2@host/db]",
        "shared: s3://key:hunter2@bucket",
        "cache: [s3://key:hunter2@bucket]",
        "cache: [{shared: s3://key:hunter2@bucket}]",
        "cache: {shared: [s3://key:hunter2@bucket]}",
        "cache: {shared: {url: s3://key:hunter2@bucket}}",
        "cache: {shared: s3://key:hunter2@bucket, max_bytes: -1}",
        "ray: {address: 'ray://me:hunter2@head:10001'}",
        "ray: {jobs: 'http://me:hunter2@head:8265'}",
        "ray: {env_vars: {TOKEN: hunter2}}",
        "ray: [{runtime_env: {env_vars: {TOKEN: hunter2}}}]",
        "ray: {runtime_env: [{env_vars: {TOKEN: hunter2}}]}",
        "ray: {runtime_env: {env_vars: TOKEN=hunter2}}",
        "ray: {runtime_env: {env_vars: [TOKEN=hunter2]}}",
        "ray: {runtime_env: {env_vars: {TOKEN: [hunter2]}}}",
        "ray: {runtime_env: {env_vars: {TOKEN: hunter2, LEVEL: 3}}}",
        "ray: {runtime_env: {env_vars: {TOKEN: hunter2, TOKEN: hunter2}}}",
        'ray: {runtime_env: {env_vars: {TOKEN: "hunter2}}}',
    ],
)
def test_what_may_be_a_secret_is_not_shown(text: str, tmp_path: Path) -> None:
    assert "hunter2" not in refused(write(tmp_path, NEEDED + text))
