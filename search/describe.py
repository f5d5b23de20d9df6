"""What a study says about itself, and the check that a resumed search is still about the same."""

import platform
from importlib import metadata

from search.candidates import Prepared
from search.config import Config, difference
from search.progress import say
from search.storage import Storage
from spaces.errors import ConfigError


def describe(storage: Storage, study_id: int, config: Config, prepared: Prepared) -> None:
    """Write what the study is about, or check that it is still about the same.

    Raises:
        ConfigError: the config, the model or the data have changed since the study was started.
    """
    loaded, score, evaluation = prepared.loaded, prepared.float_score, prepared.evaluation
    workload = {
        "entry": loaded.entry,
        "model_sha256": loaded.model_sha256,
        "data_sha256": loaded.data_sha256,
        "chance": loaded.workload.chance,
        "licence": loaded.workload.licence,
    }
    stored = storage.get_study_user_attrs(study_id)
    if "fingerprint" in stored:
        changed = difference(stored["fingerprint"], config.fingerprint())
        changed += difference({"workload": stored["workload"]}, {"workload": workload})
        changed += difference({"device": stored["device"]}, {"device": evaluation.device})
        if changed:
            raise ConfigError(
                f"study {config.study!r} was started with other settings:\n  "
                + "\n  ".join(changed)
                + "\nonly the budget, workers and cache may change; give a changed search another name (key study)"
            )
        for line in difference(stored["versions"], versions()):
            say(f"note: other versions than the study was started with may round differently: {line}")
        folders = [stored["cache"], *stored["earlier_caches"]]
        earlier = [folder for folder in folders if folder != str(evaluation.cache)]
        now = {"config": config.document(), "cache": str(evaluation.cache), "earlier_caches": earlier}
        storage.set_study_attrs(study_id, now)
        return
    described = {
        "versions": versions(),
        "config": config.document(),
        "fingerprint": config.fingerprint(),
        "workload": workload,
        "float": {
            "bytes": score.bytes,
            "accuracy": score.validation.value,
            "accuracy_ci95": score.validation.ci95,
            "test_accuracy": score.test.value,
            "test_accuracy_ci95": score.test.ci95,
            "macs": score.macs,
        },
        "space": prepared.space.document(),
        "smallest_bytes": prepared.smallest_bytes,
        "sensitivities": prepared.sensitivities,
        "cache": str(evaluation.cache),
        "earlier_caches": [],
        "device": evaluation.device,
        "coding": evaluation.coding,
        "test": {},
    }
    storage.set_study_attrs(study_id, described)


def versions() -> dict[str, str]:
    """The versions that a result may depend on."""
    found = {name: metadata.version(name) for name in ("slimfront", "torch", "optuna", "ray", "numpy")}
    return {**found, "python": platform.python_version()}
