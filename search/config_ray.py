"""The sections of a config about Ray: where it runs, what a worker gets there, and what is brought to it."""

from typing import Self

from pydantic import Field, model_validator

from search import config_fields as fields
from search import config_places as places
from search.config_errors import refusal
from search.config_sections import Section


class ResourcesConfig(Section):
    """What Ray sets aside for each worker."""

    cpus: float = Field(default=1.0, gt=0, description="CPUs of a worker; a whole number above 1")
    gpus: float | None = Field(
        default=None,
        ge=0,
        description="GPUs of a worker, or a share of one; null shares this machine's among the workers where device is "
        "cuda, on a cluster one each",
    )
    memory: fields.ByteCount | None = Field(
        default=None, description="memory of a worker, as in 4GB, on nodes that have it; null asks for none"
    )
    custom: dict[str, fields.Positive] = Field(default={}, description="other resources that nodes offer, by name")


class RuntimeEnvConfig(Section):
    """What Ray brings to the nodes of a cluster before a worker starts there."""

    working_dir: places.Folder | None = Field(
        default=None,
        description="folder that workers start in, relative to this file's; null is that of the workload's file, if "
        "the workload is one",
    )
    py_modules: places.Folders = Field(default=(), description="folders of further Python packages")
    pip: fields.Texts = Field(default=(), description="packages that pip installs there")
    env_vars: places.Variables = Field(default={}, repr=False, description="environment variables; kept in no study")
    excludes: fields.Texts = Field(default=(), description="patterns of files that stay behind, as in .gitignore")


class RayConfig(Section):
    """The Ray that workers run on."""

    address: places.RayAddress = Field(
        default=None,
        description="null starts one on this machine; auto finds the cluster that this machine is a node of; "
        "ray://HOST:PORT and HOST:PORT join one",
    )
    jobs: places.JobsUrl = Field(
        default=None,
        description="where `launch --detach` submits, as in http://head:8265; null for $RAY_API_SERVER_ADDRESS, else "
        "http://127.0.0.1:8265",
    )
    resources: ResourcesConfig = Field(default=ResourcesConfig(), description="what is set aside for each worker")
    runtime_env: RuntimeEnvConfig = Field(default=RuntimeEnvConfig(), description="what is brought to the nodes")

    @model_validator(mode="after")
    def _whole_cpus(self) -> Self:
        for key, value in (("cpus", self.resources.cpus), ("gpus", self.resources.gpus or 0.0)):
            if value > 1 and value != int(value):
                raise refusal("a share of one, or a whole number", given=f"{value:g}", at=("resources", key))
        return self
