"""What can go wrong, named by what the reader must do about it."""

from typing import ClassVar


class SlimfrontError(Exception):
    """Base of all errors that Slimfront raises on purpose: they say what, where and the fix."""

    exit_code: ClassVar[int] = 1


class ConfigError(SlimfrontError):
    """The configuration or the command line is wrong: fix your input."""

    exit_code = 2


class WorkloadError(SlimfrontError):
    """The model, its data or its metric does not keep the workload protocol: fix your input."""

    exit_code = 2


class CandidateError(SlimfrontError):
    """This policy cannot be carried out or scored; the search goes on without it."""


class RetryableError(SlimfrontError):
    """Memory or disk ran out, or the system refused something: the same task is tried again, elsewhere or later."""


class StudyError(SlimfrontError):
    """The study database cannot be reached or is not ours: stop; nothing told is lost."""


class ArtifactError(SlimfrontError):
    """A packed model file is damaged, from the future, or does not belong to this model."""
