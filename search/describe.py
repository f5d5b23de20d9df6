"""What a study says about itself, and the check that a resumed search is still about the same."""

import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from compress.places import public
from search.candidates import Checked, Prepared
from search.config import Config, difference
from search.lease import Lease
from search.progress import say
from search.storage import Storage
from spaces.errors import ConfigError


def check_unchanged(stored: Mapping[str, Any], config: Config, checked: Checked) -> None:
    """Make sure that a study is still about the same.

    Args:
        stored: the study's attributes.
        config: the search.
        checked: its workload.

    Raises:
        ConfigError: the config, the model or the data have changed since the study was started.
    """
    if "fingerprint" not in stored:
        return
    changed = difference(stored["fingerprint"], config.fingerprint())
    changed += difference({"workload": stored["workload"]}, {"workload": _workload(checked)})
    changed += difference({"device": stored["device"]}, {"device": checked.evaluation.device})
    if changed:
        raise ConfigError(
            f"study {config.study!r} was started with other settings:\n  "
            + "\n  ".join(changed)
            + "\nonly the budget, workers, engine, ray and cache may change; give a changed search another name "
            "(key study)"
        )


def describe(storage: Storage, study_id: int, config: Config, prepared: Prepared, lease: Lease) -> None:
    """Write what the study is about, or check that it is still about the same.

    Raises:
        ConfigError: the config, the model or the data have changed since the study was started.
    """
    score, evaluation = prepared.float_score, prepared.evaluation
    stored = storage.get_study_user_attrs(study_id)
    if "fingerprint" in stored:
        check_unchanged(stored, config, prepared)
        for line in difference(stored["versions"], versions()):
            say(f"note: other versions than the study was started with may round differently: {line}")
        folders = [stored["cache"], *stored["earlier_caches"]]
        earlier = [folder for folder in folders if folder != str(evaluation.cache)]
        now = {
            "config": config.document(),
            "cache": str(evaluation.cache),
            "earlier_caches": earlier,
            "shared": public(evaluation.shared),
        }
        storage.set_study_attrs(study_id, now, lease.guard)
        return
    documents = {"space": prepared.space.document(), "sensitivities": prepared.sensitivities}
    storage.set_documents(study_id, documents, lease.guard)
    described = {
        "versions": versions(),
        "config": config.document(),
        "fingerprint": config.fingerprint(),
        "workload": _workload(prepared),
        "float": {
            "bytes": score.bytes,
            "accuracy": score.validation.value,
            "accuracy_ci95": score.validation.ci95,
            "test_accuracy": score.test.value,
            "test_accuracy_ci95": score.test.ci95,
            "macs": score.macs,
        },
        "smallest_bytes": prepared.smallest_bytes,
        "cache": str(evaluation.cache),
        "earlier_caches": [],
        "shared": public(evaluation.shared),
        "device": evaluation.device,
        "coding": evaluation.coding,
    }
    storage.set_study_attrs(study_id, described, lease.guard)


def _workload(checked: Checked) -> dict[str, Any]:
    loaded = checked.loaded
    return {
        "entry": loaded.entry,
        "model_sha256": loaded.model_sha256,
        "data_sha256": loaded.data_sha256,
        "chance": loaded.workload.chance,
        "licence": loaded.workload.licence,
    }


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {name: metadata.version(name) for name in ("slimfront", "torch", "optuna", "ray", "numpy")}
    return {**found, "python": platform.python_version()}
