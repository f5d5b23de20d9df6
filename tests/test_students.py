"""Smaller models: each learns from the trained one once, the same everywhere, and its files load as what was scored."""

import copy
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from compress.files import artifact_path
from compress.inputs import outputs
from compress.shared import Shared
from objectives import students
from objectives.evaluation import Evaluation, teach
from objectives.models import Models
from objectives.score import Scorer
from objectives.students import KEY, _seal, trained_student
from objectives.workload import LoadedWorkload, load_workload, sha256_of
from spaces.errors import CandidateError
from spaces.policy import Choice, Distillation, Policy, Uniform, Unstructured
from tests.scoring import Until, evaluation, scorer_of

SETTINGS = Distillation(temperature=2.0, alpha=0.5, learning_rate=0.02, batch_size=32, student_steps=40)


def learning(cache: Path, seed: int = 0, steps: tuple[int, ...] = (6,), **changes: Any) -> Evaluation:
    settings = Distillation.model_validate(SETTINGS.model_dump() | changes)
    return replace(evaluation(cache, seed, steps), distillation=settings)


@pytest.fixture(scope="module")
def loaded() -> LoadedWorkload:
    return load_workload("tests.tiny:taught")


def policy_of(loaded: LoadedWorkload, name: str | None, bits: int = 6, distilled: Distillation | None = None) -> Policy:
    model = loaded.students[name] if name is not None else loaded.model
    sites = [key.removesuffix(".weight") for key, tensor in model.state_dict().items() if tensor.ndim > 1]
    return Policy(sites=dict.fromkeys(sites, Choice(weights=Uniform(bits=bits))), model=name, distillation=distilled)


def learned(loaded: LoadedWorkload, settings: Evaluation, name: str) -> nn.Module:
    return Scorer(loaded, settings, teach(loaded, settings)).models.member(name).model


def kept(cache: Path) -> list[Path]:
    return sorted((cache / "students").glob("*"))


class TestTraining:
    @pytest.mark.parametrize("name", ["narrow", "flat", "leaky"])
    def test_it_answers_more_like_the_trained_model(self, loaded: LoadedWorkload, name: str, tmp_path: Path) -> None:
        inputs = loaded.splits["validation"].inputs
        teacher = outputs(loaded.model, inputs, 32).argmax(dim=-1)
        before = sha256_of(loaded.students[name].state_dict())
        model = learned(loaded, learning(tmp_path, student_steps=200), name)
        shares = [
            float((outputs(one, inputs, 32).argmax(dim=-1) == teacher).double().mean())
            for one in (loaded.students[name], model)
        ]
        assert shares[1] > max(0.75, shares[0] + 0.3)
        assert sha256_of(loaded.students[name].state_dict()) == before
        assert not model.training

    def test_without_steps_or_distillation_it_is_as_it_came(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        for settings in (learning(tmp_path, student_steps=0), evaluation(tmp_path)):
            model = learned(loaded, settings, "narrow")
            assert sha256_of(model.state_dict()) == sha256_of(loaded.students["narrow"].state_dict())
        assert not (tmp_path / "students").exists()

    def test_settings_of_the_policy_s_own_training_change_nothing(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        ways: list[dict[str, Any]] = [{}, {"masks": "dynamic", "grids": "learned"}, {"temperature": 7.0, "alpha": 0.1}]
        found = {sha256_of(learned(loaded, learning(tmp_path, **way), "narrow").state_dict()) for way in ways}
        assert len(found) == 1
        assert len(kept(tmp_path)) == 1

    @pytest.mark.parametrize("way", [{"rewind": True}, {"features": 1.0}, {"optimizer": "sgd", "schedule": "linear"}])
    def test_every_other_setting_trains(self, loaded: LoadedWorkload, tmp_path: Path, way: dict[str, Any]) -> None:
        model = learned(loaded, learning(tmp_path, student_steps=20, **way), "leaky")
        assert sha256_of(model.state_dict()) != sha256_of(loaded.students["leaky"].state_dict())

    def test_one_that_diverges_is_the_candidate_s_error(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        scorer = scorer_of(loaded, learning(tmp_path, learning_rate=1e30))
        with pytest.raises(CandidateError, match="diverged"):
            scorer.score(policy_of(loaded, "narrow"), Until(0, kept=False))
        assert kept(tmp_path) == []


class TestKept:
    def test_each_is_trained_once_and_read_again(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        first = learned(loaded, learning(tmp_path), "narrow")
        learned(loaded, learning(tmp_path), "flat")
        files = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
        assert len(files) == 2
        again = learned(loaded, learning(tmp_path), "narrow")
        assert sha256_of(first.state_dict()) == sha256_of(again.state_dict())
        assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)} == files

    def test_it_is_trained_anew_the_same(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        models = [learned(loaded, learning(tmp_path / folder), "narrow") for folder in ("a", "b")]
        assert kept(tmp_path / "a")[0].read_bytes() == kept(tmp_path / "b")[0].read_bytes()
        assert sha256_of(models[0].state_dict()) == sha256_of(models[1].state_dict())

    @pytest.mark.parametrize(
        "changed",
        [{"student_steps": 41}, {"seed": 1}, {"learning_rate": 0.01}, {"batch_size": 31}, {"optimizer": "sgd"}],
    )
    def test_whatever_shapes_it_gives_another_file(
        self, loaded: LoadedWorkload, tmp_path: Path, changed: dict[str, Any]
    ) -> None:
        seed = int(str(changed.get("seed", 0)))
        others = {key: value for key, value in changed.items() if key != "seed"}
        found = [
            learned(loaded, learning(tmp_path), "narrow"),
            learned(loaded, learning(tmp_path, seed, **others), "narrow"),
        ]
        assert len(kept(tmp_path)) == 2
        assert len({sha256_of(one.state_dict()) for one in found}) == 2

    @pytest.mark.parametrize("changed", ["teacher", "loss", "outputs", "student"])
    def test_other_code_gives_another_file(self, loaded: LoadedWorkload, changed: str, tmp_path: Path) -> None:
        smooth, student = nn.CrossEntropyLoss(label_smoothing=0.1), copy.deepcopy(loaded.students["narrow"])
        teacher = copy.deepcopy(loaded.model)
        teacher.relu, student.relu = nn.GELU(), nn.GELU()
        other = {
            "teacher": replace(loaded, model=teacher),
            "loss": replace(loaded, workload=replace(loaded.workload, loss=smooth)),
            "outputs": replace(loaded, workload=replace(loaded.workload, outputs="values")),
            "student": replace(loaded, students={**loaded.students, "narrow": student}),
        }[changed]
        found = [learned(one, learning(tmp_path, student_steps=2), "narrow") for one in (loaded, loaded, other)]
        assert len(kept(tmp_path)) == 2
        assert sha256_of(found[0].state_dict()) != sha256_of(found[2].state_dict())

    def test_who_was_first_has_trained_for_all(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        """While this process trains another one ends, with weights that differ: training need not be deterministic."""
        settings = learning(tmp_path / "here")
        lesson = scorer_of(loaded, settings).models.lesson
        learned(loaded, learning(tmp_path / "there"), "narrow")
        (theirs,) = kept(tmp_path / "there")
        path = tmp_path / "here" / "students" / theirs.name
        state = {
            name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in load_file(theirs).items()
        }
        losses = 0

        def loss(out: Tensor, targets: Tensor) -> Tensor:
            nonlocal losses
            losses += 1
            if losses == 3:
                path.parent.mkdir(parents=True)
                path.write_bytes(save(state, metadata={KEY: _seal(path, state)}))
            return functional.cross_entropy(out, targets)

        model = trained_student(loaded, settings, replace(lesson, hard=loss), "narrow")
        assert losses > 3
        assert sha256_of(model.state_dict()) == sha256_of(state) == sha256_of(load_file(path))
        assert kept(tmp_path / "here") == [path]

    @pytest.mark.parametrize("damage", ["bit", "half", "empty", "text", "other model"])
    def test_a_damaged_file_is_made_anew(self, loaded: LoadedWorkload, damage: str, tmp_path: Path) -> None:
        model = learned(loaded, learning(tmp_path), "narrow")
        (path,) = kept(tmp_path)
        blob = path.read_bytes()
        if damage == "other model":
            learned(loaded, learning(tmp_path / "other"), "leaky")
            path.write_bytes(kept(tmp_path / "other")[0].read_bytes())
        else:
            at = len(blob) - 40
            flipped = blob[:at] + bytes([blob[at] ^ 4]) + blob[at + 1 :]
            path.write_bytes({"bit": flipped, "half": blob[: len(blob) // 2], "empty": b"", "text": b"hello"}[damage])
        again = learned(loaded, learning(tmp_path), "narrow")
        assert sha256_of(again.state_dict()) == sha256_of(model.state_dict())
        assert path.read_bytes() == blob

    def test_where_none_can_be_kept_it_is_trained_the_same(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("no folder")
        models = [learned(loaded, learning(folder), "narrow") for folder in (tmp_path, tmp_path / "file" / "cache")]
        assert sha256_of(models[0].state_dict()) == sha256_of(models[1].state_dict())

    def test_of_nodes_that_share_one_trains_it(
        self, loaded: LoadedWorkload, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shared = str(tmp_path / "shared")
        model = learned(loaded, replace(learning(tmp_path / "a"), shared=shared), "narrow")
        monkeypatch.setattr(students, "_train", None)
        again = learned(loaded, replace(learning(tmp_path / "b"), shared=shared), "narrow")
        assert sha256_of(again.state_dict()) == sha256_of(model.state_dict())
        assert kept(tmp_path / "a")[0].read_bytes() == kept(tmp_path / "b")[0].read_bytes()

    def test_all_nodes_take_the_one_that_was_shared_first(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        """As where another node rounds differently, and both have trained at the same time."""
        shared, settings = Shared(str(tmp_path / "shared")), learning(tmp_path / "a")
        lesson = Models(loaded, settings, teach(loaded, settings)).lesson
        model = trained_student(loaded, settings, lesson, "narrow")
        (path,) = kept(tmp_path / "a")
        state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
        blob = save(state, metadata={KEY: _seal(path, state)})
        shared.put(f"students/{path.name}", blob, wait=True)
        taken = students._kept(tmp_path / "b" / path.name, model.state_dict(), shared)
        assert sha256_of(taken) == sha256_of(state)
        assert (tmp_path / "b" / path.name).read_bytes() == blob


OTHER = """
import json, sys
from pathlib import Path
import torch
from tests.test_students import Until, learned, learning, load_workload, policy_of, scorer_of
from tests.test_students import SETTINGS, sha256_of
loaded = load_workload("tests.tiny:taught")
settings = learning(Path(sys.argv[1]))
score = scorer_of(loaded, settings).score(policy_of(loaded, "narrow", distilled=SETTINGS), Until(1))
state = learned(loaded, settings, "narrow").state_dict()
print(json.dumps([sha256_of(state), score.artifact, score.accuracy]))
"""


def test_another_process_has_the_same(loaded: LoadedWorkload, tmp_path: Path) -> None:
    settings = learning(tmp_path / "here")
    score = scorer_of(loaded, settings).score(policy_of(loaded, "narrow", distilled=SETTINGS), Until(1))
    mine = [sha256_of(learned(loaded, settings, "narrow").state_dict()), score.artifact, score.accuracy]
    made = subprocess.run(
        [sys.executable, "-c", OTHER, str(tmp_path / "there")], check=True, capture_output=True, text=True
    )
    assert json.loads(made.stdout) == mine


class TestScored:
    @pytest.mark.parametrize("name", ["narrow", "flat", "leaky"])
    @pytest.mark.parametrize("rung", [0, 1])
    def test_its_file_loads_and_gives_the_score(
        self, loaded: LoadedWorkload, name: str, rung: int, tmp_path: Path
    ) -> None:
        scorer = scorer_of(loaded, learning(tmp_path))
        score = scorer.score(policy_of(loaded, name, 4, SETTINGS), Until(rung))
        assert score.rung == rung
        assert score.artifact is not None
        path = artifact_path(tmp_path, score.artifact)
        assert path.stat().st_size == score.bytes
        fresh = scorer_of(load_workload("tests.tiny:taught"), learning(tmp_path))
        assert fresh.score_file(path, "validation").value == score.accuracy
        model = fresh.models.family.load(path)
        assert type(model[2 if name != "flat" else 0]) is type(loaded.students[name][2 if name != "flat" else 0])  # type: ignore[index]

    def test_a_smaller_model_is_smaller(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        scorer = scorer_of(loaded, learning(tmp_path))
        scores = [
            scorer.score(policy_of(loaded, name), Until(0, kept=False)) for name in (None, "leaky", "narrow", "flat")
        ]
        sizes, macs = [one.bytes for one in scores], [one.macs for one in scores]
        assert sizes[0] > sizes[2] > sizes[3]
        assert abs(sizes[0] - sizes[1]) < 0.2 * sizes[0]
        assert macs[2:] == [8 * 8 + 8 * 16 + 16 * 6, 8 * 6] or macs[2] < macs[0]
        assert macs[0] >= macs[2] > macs[3]

    def test_its_layers_are_its_own(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        """One with tensors of the same names and shapes shares no compressed layers with the trained one."""
        scorer = scorer_of(loaded, learning(tmp_path))
        layers = [
            scorer.models.database(name).layer(scorer.models.member(name).sites[0], Choice())
            for name in (None, "leaky")
        ]
        assert not torch.equal(layers[0].coded.values, layers[1].coded.values)

    def test_one_that_is_not_offered_is_named(self, loaded: LoadedWorkload, tmp_path: Path) -> None:
        scorer = scorer_of(loaded, learning(tmp_path))
        wrong = policy_of(loaded, None).model_copy(update={"model": "tiny"})
        with pytest.raises(CandidateError, match="no model 'tiny'; it offers narrow, flat, leaky"):
            scorer.score(wrong, Until(0, kept=False))
        plain = scorer_of(load_workload("tests.tiny:workload"), evaluation(tmp_path))
        with pytest.raises(CandidateError, match="it offers no students"):
            plain.score(wrong, Until(0, kept=False))

    @pytest.mark.parametrize("labels", ["given", "teacher"])
    def test_without_labels_it_works_from_end_to_end(self, labels: str, tmp_path: Path) -> None:
        unlabelled = load_workload("tests.tiny:taught_unlabelled")
        assert all(split.targets is None for split in unlabelled.splits.values())
        settings = Distillation.model_validate(SETTINGS.model_dump() | {"labels": labels})
        scorer = scorer_of(unlabelled, learning(tmp_path, steps=(40,), labels=labels))
        assert scorer.float_score().validation.value > 0.5
        scorer.check_loss()
        half = {"prune": Unstructured(ratio=0.8, criterion="wanda"), "weights": Uniform(bits=2)}
        coarse = Policy(
            sites=dict.fromkeys(("first", "second", "head"), Choice.model_validate(half)), distillation=settings
        )
        for policy in (coarse, policy_of(unlabelled, "narrow", 2, settings)):
            score = scorer.score(policy, Until(1))
            assert score.rungs[1].loss < score.rungs[0].loss
            assert score.artifact is not None
            assert scorer.score_file(artifact_path(tmp_path, score.artifact), "validation").value == score.accuracy


def test_trained_student_reads_what_it_is_told(loaded: LoadedWorkload, tmp_path: Path) -> None:
    settings = learning(tmp_path)
    scorer = scorer_of(loaded, settings)
    model = trained_student(loaded, settings, scorer.models.lesson, "narrow")
    assert sha256_of(model.state_dict()) == sha256_of(scorer.models.member("narrow").model.state_dict())
