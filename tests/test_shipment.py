"""What a job takes along: the same search, the files it needs, and no secrets."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config import Config, load_config
from search.shipment import CONFIG, job_document, packed, storage_for_job
from spaces.errors import ConfigError

ROOT = Path(__file__).parent.parent
CHANGES = (
    "space.weights=[uniform, codebook]",
    'space.rules=[{sites: "head*", bits: [8]}]',
    "space.patterns=[2:4]",
    "racing=null",
    "budget.timeout=2h",
    "budget.patience.candidates=7",
    "sampler.options={population_size: 6}",
    "ray.resources={cpus: 2, memory: 4GB, custom: {fast: 1}}",
)


def folder_with(folder: Path, **settings: Any) -> Config:
    """A config in a folder with its workload, and with things that belong to nobody else."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.py").write_text("def workload(): ...\n")
    (folder / "more").mkdir()
    (folder / "more" / "data.bin").write_bytes(b"1")
    (folder / "study.db").write_bytes(b"2")
    (folder / "search.yaml").write_text(yaml.safe_dump({"study": "mine", "workload": "mine.py:workload", **settings}))
    return load_config(folder / "search.yaml")


def shipped(config: Config) -> tuple[Config, dict[str, Any]]:
    """The config as the job reads it, and the job's runtime environment."""
    with packed(config) as shipment:
        return load_config(Path(shipment.runtime_env["working_dir"]) / shipment.config), shipment.runtime_env


@pytest.mark.parametrize("changes", [(), CHANGES], ids=["as-it-is", "changed"])
@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_job_searches_what_was_asked_for(file: Path, changes: tuple[str, ...]) -> None:
    asked = load_config(file, changes, trials=60, seed=3, focus="1kB..2MB", storage="postgresql://ann@db/studies")
    received, _ = shipped(asked)
    assert received.fingerprint() == asked.fingerprint()
    assert received.budget == asked.budget
    assert (received.workers, received.engine, received.storage) == (asked.workers, asked.engine, asked.storage)
    assert received.ray.resources == asked.ray.resources
    assert received.ray.address == "auto"


def test_what_means_something_else_there_is_made_plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = folder_with(
        tmp_path / "searches",
        storage="sqlite:///here.db",
        cache={"folder": "kept", "shared": "everybody"},
        budget={"until": "23:59"},
    )
    document = job_document(config)
    assert document["storage"] == f"sqlite:///{tmp_path}/here.db"
    assert document["cache"]["folder"] == f"{tmp_path}/kept"
    assert document["cache"]["shared"] == f"{tmp_path}/everybody"
    until = datetime.fromisoformat(document["budget"]["until"])
    assert until.tzinfo is not None
    assert until > datetime.now(UTC)
    away = folder_with(tmp_path / "away", cache={"folder": "~/kept", "shared": "s3://bucket/kept"})
    assert job_document(away)["cache"]["folder"] == "~/kept"
    assert job_document(away)["cache"]["shared"] == "s3://bucket/kept"


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:s3cret@db/studies",
        "mysql://db/studies?user=ann&password=s3cret",
        "postgresql://ann:@db/studies",
    ],
)
def test_a_password_stays_here(url: str, tmp_path: Path) -> None:
    assert storage_for_job(url) is None
    with packed(folder_with(tmp_path, storage=url)) as shipment:
        folder = Path(shipment.runtime_env["working_dir"])
        text = (folder / shipment.config).read_text()
    assert "s3cret" not in text
    assert yaml.safe_load(text)["storage"] is None


def test_the_folder_of_the_config_goes_along(tmp_path: Path) -> None:
    config = folder_with(tmp_path / "searches", cache=str(tmp_path / "searches" / "kept"))
    with packed(config) as shipment:
        folder = Path(shipment.runtime_env["working_dir"])
        assert shipment.config == CONFIG
        assert {one.name for one in folder.iterdir()} == {"mine.py", "more", "study.db", "search.yaml", CONFIG}
        assert (folder / "more" / "data.bin").read_bytes() == b"1"
        assert {"*.db*", ".git", ".venv", ".env*", ".ssh", "/kept"} <= set(shipment.runtime_env["excludes"])
    assert not folder.exists()
    assert (tmp_path / "searches" / "more" / "data.bin").exists()  # links went, not what they lead to


def test_a_larger_folder_may_be_named(tmp_path: Path) -> None:
    (tmp_path / "searches" / "deep").mkdir(parents=True)
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "net.py").write_text("def workload(): ...\n")
    config = folder_with(
        tmp_path / "searches" / "deep",
        workload="../../code/net.py:workload",
        ray={
            "runtime_env": {
                "working_dir": "../..",
                "py_modules": ["more"],
                "pip": ["einops"],
                "env_vars": {"A": "1"},
                "excludes": ["*.bin"],
            }
        },
    )
    with packed(config) as shipment:
        folder = Path(shipment.runtime_env["working_dir"])
        assert shipment.config == f"searches/deep/{CONFIG}"
        received = load_config(folder / shipment.config)
        assert Path(received.workload_entry().partition(":")[0]).read_text() == "def workload(): ...\n"
    assert received.fingerprint() == config.fingerprint()
    assert received.ray.runtime_env.working_dir == "../.."  # so that workers find the workload's file from there
    assert (received.ray.runtime_env.pip, received.ray.runtime_env.env_vars) == ((), {})
    assert shipment.runtime_env["py_modules"] == [str(tmp_path / "searches" / "deep" / "more")]
    assert (shipment.runtime_env["pip"], shipment.runtime_env["env_vars"]) == (["einops"], {"A": "1"})
    assert shipment.runtime_env["excludes"][-1] == "*.bin"


def test_a_module_may_come_with_any_folder(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    config = folder_with(
        tmp_path / "searches",
        workload="objectives.workloads.digits:workload",
        ray={"runtime_env": {"working_dir": "../code"}},
    )
    received, _ = shipped(config)
    assert received.fingerprint() == config.fingerprint()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"workload": "../other.py:workload"}, "the file must be in .*name a folder that holds both"),
        ({"ray": {"runtime_env": {"working_dir": "more"}}}, "name a folder that holds both"),
        ({"ray": {"runtime_env": {"working_dir": "nothing"}}}, "there is no folder"),
        ({"ray": {"runtime_env": {"working_dir": "s3://bucket/code.zip"}}}, "uploads a folder of this machine"),
        ({"ray": {"runtime_env": {"working_dir": "/"}}}, "holds more than a search"),
    ],
)
def test_what_a_job_would_not_find_is_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("def workload(): ...\n")
    with pytest.raises(ConfigError, match=words), packed(folder_with(tmp_path / "searches", **settings)):
        pass


def test_a_home_folder_is_not_uploaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConfigError, match="a folder of their own"), packed(folder_with(tmp_path)):
        pass


def test_an_absolute_file_is_refused_with_what_to_write(tmp_path: Path) -> None:
    config = folder_with(tmp_path / "searches", workload=f"{tmp_path}/searches/mine.py:workload")
    with pytest.raises(ConfigError, match=r"the config's folder, mine\.py:workload"), packed(config):
        pass
