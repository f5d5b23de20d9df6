"""`slimfront new`: the two files run as they are, and every process gets the same weights."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from objectives.workload import load_workload
from search.config import load_config
from search.new import new
from spaces.errors import ConfigError

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("new")
    new("my_model", made)
    return made


def start_loading(folder: Path, threads: int) -> "subprocess.Popen[str]":
    """A process with so many torch threads that loads the workload and prints its hashes."""
    script = (
        "import sys, torch\nfrom objectives.workload import load_workload\n"
        f"torch.set_num_threads({threads})\n"
        "loaded = load_workload(sys.argv[1])\n"
        f"assert torch.get_num_threads() == {threads}\n"
        "print(loaded.model_sha256, loaded.data_sha256)"
    )
    command = [sys.executable, "-c", script, f"{folder}/my_model.py:workload"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_config_is_one(folder: Path) -> None:
    config = load_config(folder / "my_model.yaml")
    assert (config.study, config.workload) == ("my_model", "my_model.py:workload")
    assert (config.budget.trials, config.workers) == (24, 2)
    assert config.sampler.uniform + config.sampler.predicted < config.budget.trials


def test_every_process_gets_the_same_weights(folder: Path, tmp_path: Path) -> None:
    new("my_model", tmp_path)
    processes = [start_loading(tmp_path, 1), start_loading(tmp_path, 2)]  # at once, and the weights are not there yet
    ended = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ended
    here = load_workload(f"{folder}/my_model.py:workload")
    assert {out.strip() for out, _ in ended} == {f"{here.model_sha256} {here.data_sha256}"}
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "my_model.py",
        "my_model.safetensors",
        "my_model.yaml",
    ]


def test_the_weights_are_kept_and_good(folder: Path) -> None:
    first = load_workload(f"{folder}/my_model.py:workload")
    stored = (folder / "my_model.safetensors").stat()
    again = load_workload(f"{folder}/my_model.py:workload")
    assert (folder / "my_model.safetensors").stat() == stored
    assert again.model_sha256 == first.model_sha256
    test = first.splits["test"]
    assert isinstance(test.inputs, torch.Tensor)
    assert test.targets is not None
    with torch.no_grad():
        right = first.model(test.inputs).argmax(dim=1) == test.targets
    assert right.float().mean() > 0.95
    assert [split.samples for split in first.splits.values()] == [797, 200, 400, 400]


def test_no_sample_is_in_two_splits(folder: Path) -> None:
    loaded = load_workload(f"{folder}/my_model.py:workload")
    images = torch.cat([split.inputs for split in loaded.splits.values() if isinstance(split.inputs, torch.Tensor)])
    assert len(images) == 1797
    assert len(torch.unique(images, dim=0)) == 1797


def test_the_files_keep_the_house_style(folder: Path) -> None:
    for check in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *check, "--config", f"{ROOT}/pyproject.toml", f"{folder}/my_model.py"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.mark.parametrize("suffix", ["py", "yaml", "safetensors"])
def test_nothing_is_overwritten(suffix: str, tmp_path: Path) -> None:
    there = tmp_path / f"mine.{suffix}"
    there.write_text("precious")
    with pytest.raises(ConfigError, match=f"mine.{suffix} exists"):
        new("mine", tmp_path)
    assert there.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [there]


@pytest.mark.parametrize(
    "name", ["", "no-name", "1st", "class", "a/b", "../up", "dot.ted", "é", "x y", "a\n", "x" * 101]
)
def test_what_cannot_name_a_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="NAME: given"):
        new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["torch", "json", "search"])
def test_an_installed_module_is_not_hidden(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hide an installed module"):
        new(name, tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        new("mine", tmp_path / "missing")
