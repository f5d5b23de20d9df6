"""The entropy coder: exact, close to what information theory allows, and safe with damaged bytes."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from compress.entropy import decode, encode, tree
from compress.entropy.contexts import Near
from compress.entropy.fitting import fit
from spaces.errors import ArtifactError

Codes = npt.NDArray[np.int16]
Generator = np.random.Generator


def entropy_bytes(codes: npt.NDArray[np.integer]) -> float:
    """Bytes that the shares of the codes allow at best, their own cost not counted."""
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


def same(codes: npt.NDArray[np.integer], low: int, high: int) -> int:
    """Bytes of an array that comes back as it was."""
    data = encode(codes, low, high)
    channels, n = codes.shape
    again = decode(memoryview(data), channels, n, low, high)
    assert again.dtype == np.int16
    assert np.array_equal(again, codes)
    return len(data)


def normal(random: Generator, shape: tuple[int, int], scale: float, top: int) -> Codes:
    return np.round(random.normal(size=shape) * scale).clip(-top, top).astype(np.int16)


def sparse(random: Generator, shape: tuple[int, int], density: float | npt.NDArray[np.float64], top: int) -> Codes:
    values = random.integers(1, top + 1, shape) * random.choice([-1, 1], shape)
    return np.where(random.random(shape) < density, values, 0).astype(np.int16)


@pytest.mark.parametrize("seed", range(60))
def test_every_array_comes_back(seed: int) -> None:
    random = np.random.default_rng(seed)
    for _ in range(5):
        shape = (int(random.integers(1, 40)), int(random.choice([1, 2, 7, 8, 9, 16, 25, 27, 36, 49, 72, 101])))
        low, high = -int(random.choice([0, 1, 3, 7, 30, 127, 255])), int(random.choice([1, 2, 7, 100, 127, 255]))
        codes = random.integers(low, high + 1, shape)
        if random.random() < 0.5:
            codes = (codes * random.random((shape[0], 1)) ** 2).astype(np.int64)
        codes[random.random(shape) < random.choice([0.0, 0.3, 0.9, 0.99, 1.0])] = 0
        same(codes.astype(np.int8 if max(-low, high) <= 127 else np.int16), low, high)


@pytest.mark.parametrize("value", [-255, -1, 0, 1, 255])
@pytest.mark.parametrize("shape", [(1, 1), (1, 1000), (1000, 1), (64, 576)])
def test_an_array_of_one_code_takes_a_few_bytes(value: int, shape: tuple[int, int]) -> None:
    size = same(np.full(shape, value), -255, 255)
    assert size == 1 if value == 0 else size < 60


@pytest.mark.parametrize(
    ("draw", "top"),
    [
        (lambda random: normal(random, (256, 512), 0.7, 1), 1),
        (lambda random: normal(random, (256, 512), 2.0, 7), 7),
        (lambda random: normal(random, (512, 576), 30.0, 127), 127),
        (lambda random: np.round(random.laplace(size=(512, 576)) * 20).clip(-127, 127).astype(np.int16), 127),
        (lambda random: sparse(random, (256, 512), 0.1, 7), 7),
        (lambda random: sparse(random, (512, 512), 0.01, 1), 1),
        (lambda random: sparse(random, (256, 512), 0.2, 3) * 40, 127),  # few codes, far from each other
        (lambda random: random.integers(-127, 128, (256, 512)), 127),
        (lambda random: random.integers(-1, 2, (256, 512)), 1),
    ],
)
def test_independent_codes_take_their_entropy(draw: Callable[[Generator], Codes], top: int) -> None:
    """Within 1 %, what a file must say of the distribution included."""
    codes = draw(np.random.default_rng(0))
    assert entropy_bytes(codes) * 0.999 < same(codes, -top, top) < entropy_bytes(codes) * 1.01


def test_even_codes_take_no_more_than_packed_ones() -> None:
    for shape in ((1, 1), (3, 5), (16, 9), (64, 64)):
        codes = np.random.default_rng(0).integers(-127, 128, shape)
        assert same(codes, -127, 127) <= codes.size + 3
        assert same(codes, -128, 127) <= codes.size + 3


def test_a_small_site_pays_few_bytes_beside_its_entropy() -> None:
    codes = normal(np.random.default_rng(0), (16, 9), 0.7, 1)
    assert same(codes, -1, 1) < entropy_bytes(codes) + 5


RNG = np.random.default_rng(1)
PARTS = {  # name: chance that a code of (64, 576) is not zero
    "rows": RNG.choice([0.02, 0.1, 0.3, 0.7], (64, 1)) * np.ones((1, 576)),
    "dead columns": np.ones((64, 1)) * RNG.choice([0.0001, 0.3], 576),
    "dead inputs": np.ones((64, 1)) * np.repeat(RNG.choice([0.0001, 0.3], 64), 9),
    "kernel positions": np.ones((64, 1)) * np.tile([0.05, 0.3, 0.05, 0.3, 0.9, 0.3, 0.05, 0.3, 0.05], 64),
    "kernels": np.repeat(RNG.choice([0.02, 0.8], (64, 64), p=(0.8, 0.2)), 9, axis=1),
    "rows and columns": RNG.choice([0.1, 0.9], (64, 1)) * RNG.choice([0.05, 0.9], 576),
}


@pytest.mark.parametrize("name", PARTS)
def test_different_densities_are_used(name: str) -> None:
    """Not much more than if the chance of each code were known, much less than if only their mean were."""
    chance = PARTS[name]
    codes = sparse(np.random.default_rng(2), (64, 576), chance, 1)
    known = float(-(chance * np.log2(chance) + (1 - chance) * np.log2(1 - chance) - chance).sum() / 8)
    size = same(codes, -1, 1)
    assert size - known < 0.35 * (entropy_bytes(codes) - known)


def test_different_scales_of_rows_and_columns_are_used() -> None:
    random = np.random.default_rng(3)
    for shape in ((64, 1), (1, 576)):
        scale = 2.0 ** random.uniform(-1, 5, shape)
        codes = np.round(random.normal(size=(64, 576)) * scale).clip(-127, 127).astype(np.int16)
        assert same(codes, -127, 127) < 0.92 * entropy_bytes(codes)


@pytest.mark.parametrize(("kept", "of"), [(2, 4), (1, 4), (4, 8)])
def test_patterns_of_n_of_m_columns_are_used(kept: int, of: int) -> None:
    random = np.random.default_rng(4)
    order = random.random((64, 576 // of, of)).argsort(axis=2).argsort(axis=2)
    codes = np.where(order < kept, random.choice([-1, 1], order.shape), 0).reshape(64, 576)
    patterns = codes.size / of * np.log2([1, 4, 6][kept] if of == 4 else 70)
    known = (patterns + np.count_nonzero(codes)) / 8
    assert same(codes, -1, 1) < 1.06 * known


def test_smooth_kernels_are_used() -> None:
    """Signs are told by the neighbours in a kernel."""
    random = np.random.default_rng(5)
    smooth = random.normal(size=(64, 64, 1)) + 0.6 * random.normal(size=(64, 64, 9))
    codes = np.round(2 * smooth.reshape(64, 576)).clip(-7, 7).astype(np.int16)
    assert same(codes, -7, 7) < 0.95 * entropy_bytes(codes)
    model = fit(codes, -7, 7)
    assert model is not None
    assert model.contexts.near in (Near.SIGN, Near.SIGN_AND_SIZE)
    assert (model.contexts.height, model.contexts.width) == (3, 3)


def test_tree_probabilities_are_those_of_the_counts() -> None:
    """Without a prior to speak of they are the shares; without counts they are the prior; always they add up to 1."""
    random = np.random.default_rng(6)
    for bits in (0, 1, 4, 7):
        counts = random.integers(1, 100, (3, 1 + 2 ** (bits + 1))).astype(np.float64)
        prior = random.random((1, counts.shape[1]))
        shares = counts / counts.sum(axis=1, keepdims=True)
        assert np.allclose(tree.probabilities(counts, prior, 1e-9), shares)
        assert np.allclose(tree.probabilities(0 * counts, prior, 1.0), prior / prior.sum())
        assert np.allclose(tree.probabilities(counts, prior, 5.0).sum(axis=1), 1)


def test_code_length_is_what_learning_after_each_code_costs() -> None:
    random = np.random.default_rng(7)
    prior = random.random((1, 9))
    bits, counts = 0.0, np.zeros((1, 9))
    for symbol in random.choice(9, 200, p=random.dirichlet(np.ones(9))):
        bits -= float(np.log2(tree.probabilities(counts, prior, 2.0)[0, symbol]))
        counts[0, symbol] += 1
    assert tree.code_length(counts, prior, 2.0) == pytest.approx(bits, rel=1e-4)


GOLDEN = {  # the format: bytes of arrays that decode to what they did in earlier versions
    "zeros": "00",
    "even": "010bb428fc9a16",
    "plain": "02b28a27808b317bcd9c25f13318f667",
    "rows": (
        "0398e39cd596ef12827799c364ddcc8161861e0066b62119d57e757900a5271f1b08b7546ed9c410ba6a5c80e167cfe61aebd8b4f8"
    ),
    "columns": "0498f62e8322cb916b86fe1a034b8f175968b43c5d956f4f0e5fa393fe5dae2a69ae62e0",
    "kernels": (
        "06d422120db9566d28055b9256e09d51939074d1b6ad531ad4a4df181c1471b6e2d2b7982eb7da90dd71470ce0915d86"
        "9a5ec846bf7afceb718c803d34b3da26b60945d9e52a87e1a88eef483010ca916be7d1e881bc558a03bc25035e4dfc38"
        "6cb773e900c51410ee343904ac77"
    ),
    "pattern": ("12a8039f6c7a969db62389ce70c8cddeb3f63571fde53bbda9b8592da3c1c5e578a06eb2082a61addf0f57eefa4a5e61d7"),
}


def example(name: str) -> tuple[Codes, int]:
    """An array by whole-number arithmetic, and its largest code."""
    i, j = np.arange(24)[:, None], np.arange(72)[None]
    noise = (i * 7919 + j * 104729 + i * j * 31 + (i * i + 3) * (j * j * j + 5)) % 1009
    sign = 1 - 2 * (noise % 2)
    if name == "zeros":
        return np.zeros((24, 72), np.int16), 7
    if name == "even":
        return (noise % 15 - 7)[:3, :4].astype(np.int16), 7
    if name == "plain":
        return (sign * (noise // 100 % 3) * (noise % 7 < 3))[:8, :8].astype(np.int16), 7
    if name == "rows":
        return ((noise < 30 + 900 * (i % 8 == 3)) * sign)[:, :27].astype(np.int16), 1
    if name == "columns":
        return ((noise < 10 + 950 * (j % 7 == 3)) * sign)[:, :21].astype(np.int16), 1
    if name == "kernels":
        return (sign[:, j[0] // 9 * 9] * (noise % 3))[:12, :36].astype(np.int16), 3
    return (sign * (j % 4 == noise[:, j[0] // 4 * 4] % 4)).astype(np.int16)[:12, :32], 1


@pytest.mark.parametrize("name", GOLDEN)
def test_the_format_stays(name: str) -> None:
    codes, top = example(name)
    assert encode(codes, -top, top).hex() == GOLDEN[name]
    assert np.array_equal(decode(bytes.fromhex(GOLDEN[name]), len(codes), codes.shape[1], -top, top), codes)


def test_the_bytes_do_not_depend_on_the_process_or_the_array_they_come_from() -> None:
    codes, top = example("kernels")
    wide = np.asfortranarray(codes.astype(np.int64))
    wide.setflags(write=False)
    assert encode(wide, -top, top) == encode(codes, -top, top)
    program = "from tests.test_entropy import encode, example; print(encode(example('kernels')[0], -3, 3).hex())"
    root = Path(__file__).parent.parent
    again = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert again.stdout.strip() == encode(codes, -3, 3).hex()


def test_damaged_bytes_are_an_error_or_other_codes_never_more() -> None:
    """3,000 streams with changed, lost, added and swapped bytes; the array is never larger than it should be."""
    random = np.random.default_rng(8)
    streams = [(encode(codes, -top, top), codes, top) for codes, top in map(example, GOLDEN)]
    refused, since = 0, time.process_time()
    for number in range(3000):
        data, codes, top = streams[number % len(streams)]
        broken = bytearray(data)
        match int(random.integers(5)):
            case 0:
                broken = broken[: int(random.integers(len(broken)))]
            case 1:
                broken += random.bytes(int(random.integers(1, 9)))
            case 2:
                broken = bytearray(random.bytes(int(random.integers(60))))
            case 3:
                broken[0] = int(random.integers(256))
            case _:
                broken[int(random.integers(len(broken)))] ^= 1 << int(random.integers(8))
        try:
            found = decode(bytes(broken), len(codes), codes.shape[1], -top, top)
        except ArtifactError:
            refused += 1
            continue
        assert found.shape == codes.shape
        assert found.dtype == np.int16
        assert np.abs(found).max() <= top
    assert 300 < refused < 2900
    assert time.process_time() - since < 60


@pytest.mark.parametrize(
    "data", [b"", b"\x02", b"\x06\x00", b"\x00\x00", b"\xff\x00\x00", b"\x06\x80\x88", b"\x12\x80\x1f"]
)
def test_heads_that_mean_nothing_are_refused(data: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"damaged|truncated"):
        decode(data, 4, 30, -1, 1)


@pytest.mark.parametrize(
    ("codes", "low", "high"),
    [
        (np.array([[2]]), -1, 1),
        (np.array([[-1]]), 0, 1),
        (np.zeros(3, np.int8), -1, 1),
        (np.zeros((0, 3), np.int8), -1, 1),
        (np.array([[0]]), 0, 0),
        (np.array([[1]]), 1, 2),
        (np.array([[0]]), -256, 1),
    ],
)
def test_codes_beyond_the_limits_are_refused(codes: npt.NDArray[np.integer], low: int, high: int) -> None:
    with pytest.raises(ValueError, match=r"codes"):
        encode(codes, low, high)


def test_there_are_no_codes_of_no_shape() -> None:
    with pytest.raises(ValueError, match=r"no codes of shape \(0, 3\)"):
        decode(b"\x00", 0, 3, -1, 1)
