"""Loading a workload: every way to give data, what the hashes are over, and what is said when something is wrong."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compress.inputs import positional
from objectives.seeds import seed_of
from objectives.splits import SPLITS
from objectives.workload import LoadedWorkload, load_workload, sha256_of
from spaces.errors import WorkloadError

TEXT = """
import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, TensorDataset
from slimfront import Workload

x = torch.arange(80.0).reshape(20, 4) / 80
y = torch.arange(20) % 3
model = nn.Sequential(nn.Linear(4, 3), nn.ReLU())
with torch.no_grad():
    model[0].weight.copy_(torch.arange(12.0).reshape(3, 4))
    model[0].bias.zero_()

class Own(Dataset):
    def __init__(self, samples): self.samples = samples
    def __len__(self): return len(self.samples)
    def __getitem__(self, index): return self.samples[index]

def workload():
    data = (x, y)
    return Workload(**({"model": model, "train": data, "calibration": data, "validation": data, "test": data,
                        "example_input": x[:1]} | changed))
"""


def load(folder: Path, changed: str = "{}", before: str = "") -> LoadedWorkload:
    """Load a workload of two classes whose arguments are changed by a Python expression."""
    file = folder / "mine.py"
    file.write_text(f"{TEXT}\n{before}\nchanged = {changed}\n")
    return load_workload(f"{file}:workload", "mine.py:workload")


def every_split(data: str) -> str:
    return f"dict.fromkeys(['train', 'calibration', 'validation', 'test'], {data})"


X, Y = torch.arange(80.0).reshape(20, 4) / 80, torch.arange(20) % 3
RACED = torch.randperm(20, generator=torch.Generator().manual_seed(seed_of(0, "validation order")))


class TestData:
    @pytest.mark.parametrize(
        "data",
        [
            "(x, y)",
            "[x, y]",
            "(x.numpy(), y.numpy())",
            "(x.numpy(), y)",
            "TensorDataset(x, y)",
            "[(x[i], y[i]) for i in range(20)]",
            "[(x[i].numpy(), int(y[i])) for i in range(20)]",
            "Own([(x[i], int(y[i])) for i in range(20)])",
            "DataLoader(TensorDataset(x, y), batch_size=7)",
            "DataLoader(TensorDataset(x, y), batch_size=20)",
        ],
    )
    def test_the_same_samples_in_any_form_are_the_same_split(self, tmp_path: Path, data: str) -> None:
        loaded = load(tmp_path, every_split(data))
        for name in SPLITS:
            split = loaded.splits[name]
            assert isinstance(split.inputs, Tensor)
            assert isinstance(split.targets, Tensor)
            order = RACED if name == "validation" else torch.arange(20)
            assert torch.equal(split.inputs, X[order])
            assert torch.equal(split.targets, Y[order])
            assert (split.samples, split.targets.dtype) == (20, torch.int64)
        assert loaded.data_sha256 == load(tmp_path).data_sha256

    @pytest.mark.parametrize(
        "data",
        [
            "({'a': x, 'b': x + 1}, y)",
            "({'a': x.numpy(), 'b': x.numpy() + 1}, y.numpy())",
            "[({'a': x[i], 'b': x[i] + 1}, y[i]) for i in range(20)]",
            "DataLoader(Own([({'a': x[i], 'b': x[i] + 1}, int(y[i])) for i in range(20)]), batch_size=6)",
        ],
    )
    def test_inputs_may_be_named(self, tmp_path: Path, data: str) -> None:
        split = load(tmp_path, every_split(data)).splits["validation"]
        assert isinstance(split.inputs, dict)
        raced = X[RACED]
        found = {name: part.tolist() for name, part in split.inputs.items()}
        assert found == {"a": raced.tolist(), "b": (raced + 1).tolist()}
        assert split.targets is not None
        assert torch.equal(split.targets, Y[RACED])

    @pytest.mark.parametrize(
        "data",
        [
            "((x, x + 1), y)",
            "[((x[i], x[i] + 1), y[i]) for i in range(20)]",
            "DataLoader(Own([((x[i], x[i] + 1), int(y[i])) for i in range(20)]), batch_size=6)",
        ],
    )
    def test_inputs_may_be_several(self, tmp_path: Path, data: str) -> None:
        split = load(tmp_path, every_split(data)).splits["test"]
        assert isinstance(split.inputs, tuple)
        assert [part.tolist() for part in split.inputs] == [X.tolist(), (X + 1).tolist()]
        assert split.targets is not None
        assert torch.equal(split.targets, Y)

    @pytest.mark.parametrize(
        "data", ["x", "(x, None)", "[x[i] for i in range(20)]", "Own(x)", "DataLoader(x, batch_size=7)"]
    )
    def test_targets_may_be_missing(self, tmp_path: Path, data: str) -> None:
        split = load(tmp_path, every_split(data)).splits["train"]
        assert isinstance(split.inputs, Tensor)
        assert torch.equal(split.inputs, X)
        assert split.targets is None

    @pytest.mark.parametrize(
        "data", ["{'a': x, 'b': x}", "[{'a': x[i], 'b': x[i]} for i in range(20)]", "({'a': x, 'b': x}, None)"]
    )
    def test_named_inputs_need_no_targets(self, tmp_path: Path, data: str) -> None:
        split = load(tmp_path, every_split(data)).splits["train"]
        assert isinstance(split.inputs, dict)
        assert (list(split.inputs), split.targets, split.samples) == (["a", "b"], None, 20)

    def test_two_samples_are_samples(self, tmp_path: Path) -> None:
        split = load(tmp_path, every_split("[(x[0], y[0]), (x[1], y[1])]")).splits["train"]
        assert split.targets is not None
        assert split.targets.tolist() == [0, 1]

    def test_only_validation_is_shuffled_the_same_way_each_time(self, tmp_path: Path) -> None:
        """So that a race looks at a random sample of it, and every reader at the same one."""
        assert sorted(RACED.tolist()) == list(range(20)) != RACED.tolist()
        for data in ("((x, x + 1), y)", "x"):
            parts = positional(load(tmp_path, every_split(data)).splits["validation"].inputs)
            assert [part.tolist() for part in parts] == [(X + i)[RACED].tolist() for i in range(len(parts))]

    def test_the_order_is_no_part_of_the_hash(self, tmp_path: Path) -> None:
        loaded = load(tmp_path)
        given = {f"{name}.{what}": part for name in SPLITS for what, part in (("inputs", X), ("targets", Y))}
        assert loaded.data_sha256 == sha256_of(given)

    def test_a_split_is_a_copy(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, every_split("(x, y)"))
        parts = [loaded.splits[name].inputs for name in SPLITS]
        assert len({part.data_ptr() for part in parts if isinstance(part, Tensor)}) == 4


class TestHashes:
    def test_they_are_stable(self, tmp_path: Path) -> None:
        first, again = load(tmp_path), load(tmp_path)
        assert (first.model_sha256, first.data_sha256) == (again.model_sha256, again.data_sha256)
        assert len(first.model_sha256) == len(first.data_sha256) == 64

    @pytest.mark.parametrize(
        "changed",
        [
            every_split("(x + torch.eye(20, 4) * 1e-6, y)"),
            every_split("(x, y.flip(0))"),
            every_split("(x.double(), y)"),
            every_split("(x.reshape(20, 4, 1), y)"),
            every_split("(x, None)"),
            every_split("({'a': x}, y)"),
            "{'test': (x[:19], y[:19])}",
        ],
    )
    def test_other_data_have_another_hash(self, tmp_path: Path, changed: str) -> None:
        plain, other = load(tmp_path), load(tmp_path, changed)
        assert plain.data_sha256 != other.data_sha256
        assert plain.model_sha256 == other.model_sha256

    def test_splits_that_changed_places_have_another_hash(self, tmp_path: Path) -> None:
        one = load(tmp_path, "{'validation': (x[:9], y[:9]), 'test': (x[9:], y[9:])}")
        other = load(tmp_path, "{'test': (x[:9], y[:9]), 'validation': (x[9:], y[9:])}")
        assert one.data_sha256 != other.data_sha256

    @pytest.mark.parametrize(
        "before",
        [
            "model[0].bias.data[1] = 1e-7",
            "model.register_buffer('mean', torch.zeros(1))",
            "model = nn.Sequential(nn.ReLU(), nn.Linear(4, 3))",
            "model = model.double()",
        ],
    )
    def test_another_model_has_another_hash(self, tmp_path: Path, before: str) -> None:
        plain, other = load(tmp_path), load(tmp_path, before=before)
        assert plain.model_sha256 != other.model_sha256
        assert plain.data_sha256 == other.data_sha256


def test_the_users_model_stays_as_it_was(tmp_path: Path) -> None:
    loaded = load(tmp_path, before="model.train(); model[0].bias.requires_grad_(False)")
    theirs, ours = loaded.workload.model, loaded.model
    assert theirs.training
    assert not ours.training
    assert theirs is not ours
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(1)
    assert theirs.state_dict()["0.weight"].flatten().tolist() == [float(i) for i in range(12)]
    assert [p.requires_grad for p in theirs.parameters()] == [True, False]


def test_the_loss_is_the_one_given_or_cross_entropy_for_classes(tmp_path: Path) -> None:
    entropy = torch.nn.functional.cross_entropy
    assert load(tmp_path).hard_loss() is entropy
    assert load(tmp_path, "{'loss': functional.nll_loss}").hard_loss() is torch.nn.functional.nll_loss
    assert load(tmp_path, "{'outputs': 'values'}").hard_loss() is None
    assert load(tmp_path, every_split("(x, y.float())")).hard_loss() is None
    assert load(tmp_path, every_split("x")).hard_loss() is None


def test_an_entry_keeps_the_name_it_is_compared_by(tmp_path: Path) -> None:
    assert load(tmp_path).entry == "mine.py:workload"
    assert load_workload(f"{tmp_path / 'mine.py'}:workload").entry == f"{tmp_path / 'mine.py'}:workload"


class TestStudents:
    """Smaller models and early weights that a workload may offer."""

    SMALL = "{'students': {'small': nn.Sequential(nn.Linear(4, 3))}}"

    def test_they_are_copies_in_evaluation_mode(self, tmp_path: Path) -> None:
        loaded = load(tmp_path, self.SMALL)
        theirs, ours = loaded.workload.students["small"], loaded.students["small"]
        assert (theirs.training, ours.training) == (True, False)
        assert theirs is not ours
        assert load(tmp_path).students == {}

    @pytest.mark.parametrize(
        ("changed", "before"),
        [
            (SMALL, ""),
            ("{'students': {'small': small}}", "small = nn.Linear(4, 3); small.weight.data.zero_()"),
            ("{'students': {'other': small}}", "small = nn.Linear(4, 3); small.weight.data.zero_()"),
            ("{'early': model.state_dict()}", ""),
            ("{'early': {k: v + 1e-6 for k, v in model.state_dict().items()}}", ""),
        ],
    )
    def test_they_are_in_the_hash_of_the_model(self, tmp_path: Path, changed: str, before: str) -> None:
        plain, other = load(tmp_path), load(tmp_path, changed, before)
        assert plain.model_sha256 != other.model_sha256
        assert plain.data_sha256 == other.data_sha256

    def test_the_name_of_a_student_is_in_it_too(self, tmp_path: Path) -> None:
        before = "small = nn.Linear(4, 3); small.weight.data.zero_(); small.bias.data.zero_()"
        hashes = [load(tmp_path, f"{{'students': {{'{name}': small}}}}", before).model_sha256 for name in ("a", "b")]
        assert len(set(hashes)) == 2

    @pytest.mark.parametrize("early", ["model.state_dict()", "dict(model.named_parameters())"])
    def test_early_weights_are_those_of_the_model(self, tmp_path: Path, early: str) -> None:
        loaded = load(tmp_path, f"{{'early': {early}}}")
        assert loaded.workload.early is not None
        assert set(loaded.workload.early) == {"0.weight", "0.bias"}

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ("{'students': [model]}", ["students is list, expected a dict"]),
            ("{'students': {'a b': model}}", ["student 'a b'", "letters, digits, dots and dashes"]),
            ("{'students': {'': model}}", ["student ''"]),
            ("{'students': {3: model}}", ["student 3"]),
            ("{'students': {'trained': model}}", ["student 'trained'"]),
            ("{'students': {'small': 3}}", ["student small is int, expected a torch.nn.Module"]),
            ("{'students': {'small': nn.ReLU()}}", ["the student small", "nothing to compress"]),
            ("{'students': {'small': nn.LazyLinear(3)}}", ["the student small's weight has no shape yet"]),
            ("{'early': {'0.weight': model[0].weight}}", ["early weights 0.bias: missing, the model has (3,)"]),
            (
                "{'early': {'0.weight': x, '0.bias': model[0].bias}}",
                ["early weights 0.weight: (20, 4), the model has (3, 4)"],
            ),
        ],
    )
    def test_what_is_wrong_with_them_is_said(self, tmp_path: Path, changed: str, words: list[str]) -> None:
        with pytest.raises(WorkloadError) as caught:
            load(tmp_path, changed)
        assert all(word in str(caught.value) for word in [f"{tmp_path / 'mine.py'}:workload", *words]), str(
            caught.value
        )


class TestImport:
    def test_a_module_beside_the_config_is_found(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "beside_the_config.py").write_text(f"{TEXT}\nchanged = {{}}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.path", [folder for folder in __import__("sys").path if folder])
        assert load_workload("beside_the_config:workload").entry == "beside_the_config:workload"

    @pytest.mark.parametrize(
        ("text", "function", "words"),
        [
            ("import no_such_thing", "workload", ["no module named 'no_such_thing'", "install it"]),
            ("1 / 0", "workload", ["importing", "mine.py:1", "ZeroDivisionError: division by zero"]),
            ("def workload(:", "workload", ["importing", "SyntaxError"]),
            ("", "workload", ["has no 'workload'", "it has no function"]),
            ("def one(): ...\ndef two(): ...", "three", ["has no 'three'", "it has one, two"]),
            ("workload = 3", "workload", ["workload is int, expected a function"]),
            ("def workload():\n  return {}['key']", "workload", ["calling workload() failed", "mine.py:2", "KeyError"]),
            ("def workload(path): ...", "workload", ["calling workload() failed", "TypeError", "'path'"]),
            ("def workload(): ...", "workload", ["returned NoneType, expected a Workload", "return one"]),
        ],
    )
    def test_what_is_wrong_is_said(self, tmp_path: Path, text: str, function: str, words: list[str]) -> None:
        file = tmp_path / "mine.py"
        file.write_text(text)
        with pytest.raises(WorkloadError) as caught:
            load_workload(f"{file}:{function}")
        assert all(word in str(caught.value) for word in [f"{file}:{function}", *words]), str(caught.value)

    def test_a_missing_file_or_module_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(WorkloadError, match=r"no such file: .*/none\.py"):
            load_workload(f"{tmp_path}/none.py:workload")
        with pytest.raises(WorkloadError, match="no module named 'no_such_module_of_mine'; install it, or give a file"):
            load_workload("no_such_module_of_mine:workload")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ("{'model': x}", ["model is Tensor, expected a torch.nn.Module"]),
        ("{'model': nn.ReLU()}", ["nothing to compress"]),
        ("{'model': nn.Linear(4, 3).requires_grad_(False).apply(spoil)}", ["bias", "not finite", "train or load"]),
        ("{'outputs': 'probabilities'}", ["outputs is 'probabilities', expected 'logits' or 'values'"]),
        ("{'metric': 'accuracy'}", ["metric is str, expected a callable (outputs, targets)"]),
        ("{'metric': None}", ["metric is NoneType, expected a callable"]),
        ("{'loss': 1}", ["loss is int, expected a callable"]),
        ("{'test': (x[:0], y[:0])}", ["the test split is empty", "at least one sample"]),
        ("{'test': []}", ["the test split is empty"]),
        ("{'test': DataLoader(x[:0])}", ["the test split is empty"]),
        ("{'train': (x, y[:19])}", ["the train split", "different lengths", "'inputs': 20, 'targets': 19"]),
        ("{'train': ({'a': x, 'b': x[:3]}, y)}", ["the train split", "different lengths", "'inputs[b]': 3"]),
        ("{'calibration': 5}", ["the calibration split", "int", "expected a pair of tensors"]),
        ("{'calibration': None}", ["the calibration split", "NoneType", "expected a pair"]),
        ("{'calibration': (i for i in range(3))}", ["the calibration split", "generator", "expected a pair"]),
        ("{'validation': Own([(x[0], 0), (x[0, :2], 1), (x[0], 0)])}", ["the validation split cannot be read"]),
        ("{'validation': (['a', 'b'], y)}", ["the validation split cannot be read"]),
        ("{'validation': Own([(x[0], 'cat'), (x[1], 'dog'), (x[2], 'cow')])}", ["the validation split"]),
    ],
)
def test_what_does_not_keep_the_protocol_is_named(tmp_path: Path, changed: str, words: list[str]) -> None:
    spoil = "def spoil(layer): layer.bias.fill_(float('nan'))"
    with pytest.raises(WorkloadError) as caught:
        load(tmp_path, changed, spoil)
    assert all(word in str(caught.value) for word in [f"{tmp_path / 'mine.py'}:workload", *words]), str(caught.value)
