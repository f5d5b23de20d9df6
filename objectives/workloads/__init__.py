"""The workloads that ship, one module each with `workload()`, and the rule by which their data are split."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # this package is imported to look a name up: it must not cost the import of torch
    from torch import Tensor


class Splits(NamedTuple):
    """Four disjoint parts of a data set, each `(inputs, targets)`: float32 (n, 1, h, w) and int64 (n,)."""

    train: "tuple[Tensor, Tensor]"
    calibration: "tuple[Tensor, Tensor]"
    validation: "tuple[Tensor, Tensor]"
    test: "tuple[Tensor, Tensor]"


def stratified_split(
    images: Sequence[bytes], labels: Sequence[int], sizes: Sequence[int], *, seed: int
) -> list[list[int]]:
    """Deal all samples into parts that share no image and hold every class in the same proportion.

    The order within a class is that of SHA-256 of the seed and the image, so it depends on no library's
    random numbers, and identical images are dealt as one. The classes are interleaved, so that any stretch of
    a part is close to balanced as well.

    Args:
        images: the bytes of each sample's image, n of them.
        labels: the class of each sample, n of them.
        sizes: how many samples each part gets; they sum to n.
        seed: another seed gives another split.

    Returns:
        For each part the indices of its samples, exactly as many as asked for.

    Raises:
        ValueError: the lengths do not fit, or groups of identical images cannot fill the sizes exactly.
    """
    if not len(images) == len(labels) == sum(sizes):
        given = f"{len(images)} images, {len(labels)} labels, sizes that sum to {sum(sizes)}"
        raise ValueError(f"{given}: these must be equal")
    groups: dict[bytes, list[int]] = defaultdict(list)
    for index, image in enumerate(images):
        groups[hashlib.sha256(b"%d:" % seed + image).digest()].append(index)
    classes: dict[int, list[list[int]]] = defaultdict(list)
    for _, group in sorted(groups.items()):
        classes[labels[group[0]]].append(group)
    order: list[tuple[float, int, list[int]]] = []
    for label, members in classes.items():
        total, dealt = sum(map(len, members)), 0
        for group in members:
            depth = (2 * dealt + len(group)) / (2 * total)  # of the group's middle in its class, 0..1
            order.append((depth, label, group))
            dealt += len(group)
    parts: list[list[int]] = [[] for _ in sizes]
    for _, _, group in sorted(order):
        room = (part for part, size in zip(parts, sizes, strict=True) if len(part) + len(group) <= size)
        part = next(room, None)
        if part is None:
            raise ValueError(f"no part of sizes {list(sizes)} has room for {len(group)} identical images")
        part.extend(group)
    return parts
