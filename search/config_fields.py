"""The types of a config's fields: what each one checks, and the words for what it allows; see also `config_places`."""

import math
import re
from datetime import datetime, time
from decimal import Decimal
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from search.config_errors import refusal
from search.sizes import parse_size
from spaces.errors import ConfigError

SAMPLERS = ("front", "nsga2", "tpe", "random", "gp")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600}
_STUDY_WORDS = "1 to 100 letters, digits, dots, dashes and underscores"
_SAMPLER_WORDS = f"{' | '.join(SAMPLERS)}, or a dotted path such as optuna.samplers.NSGAIIISampler"
_OPTIONS_WORDS = "keyword arguments of the sampler: name and value"
_TIMEOUT_WORDS = 'more than 0 seconds, as a number or as "90s", "30m" or "2h", or null'
_UNTIL_WORDS = (
    'a time such as "18:00", or a date and time such as "2026-12-24 18:00" or "2026-12-24T18:00+01:00", or null'
)
_FOCUS_WORDS = "[low, high] in bytes with low below high, also as 40kB..120kB with both units, or null"
_PATTERN_WORDS = "n:m with n below m and m up to 16, such as 2:4: of each 4 weights 2 stay"
_SCALE_WORDS = "tensor, channel, or how many weights of a channel share a scale, at least 2"
_BYTES_WORDS = "a number of bytes, also as 500MB or 2GB"
_BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_GRACE_WORDS = '0 seconds or more, as a number or as "30s" or "2m"'
_Item = TypeVar("_Item")


def words(allowed: str, **more: Any) -> Any:
    """Put the words for what is allowed into the JSON Schema, where the errors find them."""
    return Field(json_schema_extra={"x-allowed": allowed, **more})


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _distinct(values: tuple[_Item, ...]) -> tuple[_Item, ...]:
    if len(set(values)) < len(values):
        raise refusal("each value once")
    return values


def _ascending(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(sorted(values))


def _increasing(values: tuple[int, ...]) -> tuple[int, ...]:
    if any(after <= before for before, after in pairwise(values)):
        raise refusal("numbers of steps that increase: each rung trains on from the one before")
    return values


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise refusal("a range of two numbers, [low, high]")
    return tuple(value)


def _low_to_high(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise refusal("a range with the lower number first, [low, high]")
    return values


def _pattern(value: str) -> str:
    found = re.fullmatch(r"(\d{1,2}):(\d{1,2})", value, re.ASCII)
    if not found or not 1 <= int(found[1]) < int(found[2]) <= 16:
        raise refusal(_PATTERN_WORDS)
    return f"{int(found[1])}:{int(found[2])}"


def _scale_per(value: Any) -> Any:
    if isinstance(value, bool) or (isinstance(value, int) and value < 2):
        raise refusal(_SCALE_WORDS)
    if not isinstance(value, int) and value not in ("tensor", "channel"):
        raise refusal(_SCALE_WORDS)
    return value


def _bytes(value: Any) -> Any:
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?B)", value, re.ASCII)
        if not found:
            raise refusal(_BYTES_WORDS)
        return int(Decimal(found[1]) * _BYTES[found[2]])
    return value


def _objectives(value: Any) -> Any:
    if value not in (["accuracy", "bytes"], ("accuracy", "bytes")):
        raise refusal("[accuracy, bytes]")
    return tuple(value)


def _study(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", name):
        raise refusal(_STUDY_WORDS)
    return name


def _sampler(name: str) -> str:
    dotted = "." in name and all(part.isidentifier() for part in name.split("."))
    if name not in SAMPLERS and not dotted:
        near = get_close_matches(name.lower(), SAMPLERS, n=2, cutoff=0.5)
        raise refusal(_SAMPLER_WORDS + (f"; did you mean {' or '.join(near)}?" if near else ""))
    return name


def _finite(value: Any) -> Any:
    match value:
        case float() if not math.isfinite(value):
            raise refusal("finite numbers", given=str(value))
        case dict():
            return {name: _finite(inner) for name, inner in value.items()}
        case list():
            return [_finite(inner) for inner in value]
        case _:
            return value


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", value, re.ASCII)
        if not found:
            raise refusal(_TIMEOUT_WORDS)
        return float(found[1]) * _SECONDS[found[2]]
    return value


def _grace(value: Any) -> Any:
    try:
        return _seconds(value)
    except PydanticCustomError:
        raise refusal(_GRACE_WORDS) from None


def clock_of(text: str) -> time | datetime | None:
    """Read a time of the day, or a date and time (local where it has no offset); None for any other text."""
    try:
        if found := re.fullmatch(r"(\d{1,2}):(\d\d)(?::(\d\d))?", text, re.ASCII):
            return time(int(found[1]), int(found[2]), int(found[3] or 0))
        moment = datetime.fromisoformat(text) if ":" in text else None
        if moment is not None:
            moment.timestamp()  # year 1 has none
        return moment
    except (ValueError, OverflowError):
        return None


def _until(value: Any) -> Any:
    if value is not None and (not isinstance(value, str) or clock_of(value) is None):
        raise refusal(_UNTIL_WORDS)
    return value


def _focus(value: Any) -> Any:
    if value is None:
        return None
    ends = value.split("..") if isinstance(value, str) else value
    if not isinstance(ends, list | tuple) or len(ends) != 2:
        raise refusal(_FOCUS_WORDS)
    if isinstance(value, str) and len({end.strip()[-1:].isdigit() for end in ends}) > 1:
        raise refusal(_FOCUS_WORDS)  # 40..120kB: are these 40 bytes?
    low, high = (_focus_end(end) for end in ends)
    if low >= high:
        raise refusal(_FOCUS_WORDS)
    return low, high


def _focus_end(end: Any) -> int:
    try:
        size = parse_size(end) if isinstance(end, str) else end
    except ConfigError as error:
        raise refusal(_FOCUS_WORDS) from error
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**63:
        raise refusal(_FOCUS_WORDS)
    return size


AsTuple = BeforeValidator(_as_tuple)
_Choices = (AsTuple, AfterValidator(_distinct))
_SomeChoices = (Field(min_length=1), *_Choices)

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Bits = Annotated[int, Field(ge=2, le=8)]
Ratio = Annotated[float, Field(ge=0, lt=1), AfterValidator(abs)]  # abs: -0.0 is 0.0
AllBits = Annotated[tuple[Bits, ...], *_SomeChoices, AfterValidator(_ascending)]
AllRatios = Annotated[tuple[Ratio, ...], *_SomeChoices, AfterValidator(_ascending)]
AllPrune = Annotated[tuple[Literal["none", "unstructured", "nm", "threshold"], ...], *_SomeChoices]
AllWeights = Annotated[tuple[Literal["uniform", "codebook", "float16", "float32"], ...], *_SomeChoices]
Pattern = Annotated[str, AfterValidator(_pattern), words(_PATTERN_WORDS)]
AllPatterns = Annotated[tuple[Pattern, ...], *_Choices]
Threshold = Annotated[float, Field(gt=0)]
AllThresholds = Annotated[tuple[Threshold, ...], *_Choices, AfterValidator(_ascending)]
AllActivations = Annotated[tuple[Literal["float", "static", "dynamic"], ...], *_SomeChoices]
ActivationBits = Annotated[int, Field(ge=4, le=8)]
AllActivationBits = Annotated[tuple[ActivationBits, ...], *_SomeChoices, AfterValidator(_ascending)]
ScalePer = Annotated[str | int, BeforeValidator(_scale_per), words(_SCALE_WORDS)]
AllChannelRatios = Annotated[tuple[Ratio, ...], *_Choices, AfterValidator(_ascending)]
ByteCount = Annotated[int, BeforeValidator(_bytes), Field(ge=0), words(_BYTES_WORDS)]
Glob = Annotated[str, Field(min_length=1), words("a glob of sites such as layers.*.conv1")]
Globs = Annotated[tuple[Glob, ...], AsTuple]
Range = (BeforeValidator(_pair), AfterValidator(_low_to_high))
Temperatures = Annotated[tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]], *Range]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], Annotated[float, Field(ge=0, le=1)]], *Range]
Steps = Annotated[tuple[Count, ...], AsTuple, AfterValidator(_increasing)]
Objectives = Annotated[tuple[Literal["accuracy"], Literal["bytes"]], BeforeValidator(_objectives)]
Study = Annotated[str, AfterValidator(_study), words(_STUDY_WORDS, pattern="^[A-Za-z0-9._-]{1,100}$")]
SamplerName = Annotated[str, AfterValidator(_sampler), words(_SAMPLER_WORDS)]
Options = Annotated[dict[str, Any], BeforeValidator(_finite), words(_OPTIONS_WORDS)]
Texts = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], AsTuple]
Positive = Annotated[float, Field(gt=0)]
Seconds = Annotated[
    Annotated[float, Field(gt=0), Strict()] | None,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[smh]?$"},
                {"type": "null"},
            ],
            "x-allowed": _TIMEOUT_WORDS,
        }
    ),
]
GraceSeconds = Annotated[
    Annotated[float, Field(ge=0), Strict()],
    BeforeValidator(_grace),
    WithJsonSchema(
        {
            "anyOf": [{"type": "number", "minimum": 0}, {"type": "string", "pattern": r"^\d+(\.\d+)?\s*[smh]?$"}],
            "x-allowed": _GRACE_WORDS,
        }
    ),
]
Until = Annotated[str | None, BeforeValidator(_until), words(_UNTIL_WORDS)]
Focus = Annotated[
    tuple[int, int] | None,
    BeforeValidator(_focus),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "array", "items": {"type": ["integer", "string"]}, "minItems": 2, "maxItems": 2},
                {"type": "string", "pattern": r"^.+\.\..+$"},
                {"type": "null"},
            ],
            "x-allowed": _FOCUS_WORDS,
        }
    ),
]
