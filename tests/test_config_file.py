"""A config file and what --set changes in it: what cannot be read is told with file, line and column."""

from pathlib import Path

import pytest

from search.config import load_config
from search.config_sections import CacheConfig
from spaces.errors import ConfigError
from tests.test_config import read
from tests.test_config_errors import CONFIGS, NEEDED, refused, write


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


def test_set_changes_keys_and_makes_sections(tmp_path: Path) -> None:
    overrides = ("space.bits=[8, 4]", "sampler.options.population_size=20", "seed=1", "seed=2", "cache=")
    config = read(tmp_path, "space: {bits: [2]}\ncache: here", *overrides)
    assert config.space.bits == (4, 8)
    assert config.sampler.options == {"population_size": 20}
    assert config.seed == 2
    assert config.cache == CacheConfig()


def test_options_of_the_command_line_replace_the_file_and_none_does_not(tmp_path: Path) -> None:
    text = "budget: {trials: 9, timeout: 9}\nworkers: 9\nseed: 9\nstorage: sqlite:///nine.db"
    new = {"trials": 1, "timeout": "1m", "workers": 0, "seed": 3, "storage": "sqlite:///new.db"}
    config = read(tmp_path, text, **new)
    assert (config.budget.trials, config.budget.timeout, config.workers, config.seed) == (1, 60.0, 0, 3)
    assert config.resolved_storage() == "sqlite:///new.db"
    assert read(tmp_path, text, **dict.fromkeys(new)) == read(tmp_path, text)
    with pytest.raises(ConfigError, match=r"workers \(from --workers\): given -1"):
        read(tmp_path, workers=-1)
