"""A packed file's content as the ONNX model that is deployed."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.artifact import open_packed
from compress.inputs import take
from compress.onnx import CHUNK, export
from objectives.replay import workload_of
from objectives.serving import family_of, unpack
from spaces.errors import ConfigError


@dataclass(frozen=True)
class Deployed:
    """An ONNX file that was written.

    Attributes:
        path: the file.
        bytes: its size.
        difference: largest absolute difference of ONNX Runtime's outputs to torch's on calibration samples.
        stored: how each site's weights are kept in it: a type's name.
        folded: layers that took in the BatchNorm behind them.
    """

    path: str
    bytes: int
    difference: float
    stored: dict[str, str]
    folded: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """The result as JSON values."""
        return asdict(self)


def deploy(packed: Path, output: Path, *, workload: str | None = None) -> Deployed:
    """Write the ONNX model of a packed file: made from what the file holds, so nothing else can be in it.

    Args:
        packed: the packed file.
        output: where the ONNX file goes.
        workload: `module:function` or `file.py:function`; None is the file's, if that ships with Slimfront.

    Raises:
        ArtifactError: the packed file is missing, damaged, or of another architecture, or ONNX Runtime's outputs are
            not torch's.
        CandidateError: the model has something that ONNX or its exporter lacks.
        ConfigError: the extra packages are not installed, or `output` cannot be written.
        WorkloadError: the workload is not known or cannot be loaded.
    """
    opened = open_packed(packed)
    loaded = workload_of(opened.entry, workload, f"{packed} was packed")
    content = unpack(family_of(loaded), opened)
    some = take(loaded.splits["calibration"].inputs, slice(0, CHUNK))
    try:
        made = export(content.model, some, output, coded=content.coded, sites=content.variant.sites)
    except OSError as error:
        raise ConfigError(f"{output}: cannot be written: {error}") from error
    return Deployed(str(output), made.file_bytes, made.difference, dict(made.stored), made.folded)
