"""Coded weights as bytes: against a reader written from the format's description, and against damage."""

import random
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress.coding import GAP_BITS, RECORD, CodedWeight, Form, Kind, pack_bits, read, unpack_bits
from compress.quantization.uniform import quantize, top
from spaces.errors import ArtifactError
from tests.models import random_tensor

WAYS = [(Form.DENSE, 0), (Form.BITMAP, 0), *((Form.RELATIVE, bits) for bits in GAP_BITS)]
KINDS = [(Kind.FLOAT32, 32), (Kind.FLOAT16, 16), *((Kind.UNIFORM, bits) for bits in range(2, 9))]
every_kind = pytest.mark.parametrize(
    ("kind", "bits"), KINDS, ids=[f"{kind.name.lower()}{bits}" for kind, bits in KINDS]
)
SHARES = (0.0, 0.01, 0.05, 0.2, 0.4, 0.5, 0.6, 0.9, 1.0)


def coded(kind: Kind, bits: int, shape: tuple[int, int], share: float, seed: int = 0) -> CodedWeight:
    """Random weights, of which a share is not zero."""
    rows = random_tensor(*shape, seed=seed)
    draw = torch.rand(shape, generator=torch.Generator().manual_seed(seed + 1))
    kept = draw < share
    if kind is Kind.UNIFORM:
        codes, scales, exponent = quantize(rows, kept, bits)
        return CodedWeight(kind, codes, bits, scales, exponent)
    awkward = torch.tensor([-0.0, 1e-45, -1e-40, 6e-8, float(torch.finfo(torch.float16).max), 1.0])
    rows = torch.where(draw < share / 4, awkward[torch.arange(rows.numel()).reshape(shape) % 6], rows)
    values = torch.where(kept, rows, 0.0)
    return CodedWeight(kind, values.half() if kind is Kind.FLOAT16 else values, bits)


def forced(one: CodedWeight, form: Form, gap_bits: int) -> CodedWeight:
    """The same weights, which will be written in this form."""
    new = replace(one)
    new.__dict__["_best"] = (-1, form, gap_bits)
    return new


def same(one: CodedWeight, other: CodedWeight) -> bool:
    """Equal to the bit."""
    plain = (one.kind, one.bits, one.exponent) == (other.kind, other.bits, other.exponent)
    scales = one.scales is other.scales or bool(torch.equal(one.scales, other.scales))  # type: ignore[arg-type]
    left, right = one.values.numpy(), other.values.numpy()
    return (
        plain
        and scales
        and left.dtype == right.dtype
        and left.shape == right.shape
        and left.tobytes() == right.tobytes()
    )


def read_by_description(record: bytes, payload: bytes, channels: int, n: int) -> list[float]:
    """A second reader, one bit at a time: form, scales, positions, values."""
    tag, bits, gap_bits, exponent, fields = RECORD.unpack(record)
    form, kind = divmod(tag, 16)
    scales = [1.0] * channels
    if kind == Kind.UNIFORM:
        scales = [float(half) * 2.0**exponent for half in np.frombuffer(payload[: 2 * channels], np.float16)]
        payload = payload[2 * channels :]
    place = 0

    def number(width: int) -> int:
        nonlocal place
        found = sum((payload[(place + i) // 8] >> (place + i) % 8 & 1) << i for i in range(width))
        place += width
        return found

    total, positions = channels * n, []
    if form == Form.DENSE:
        positions = list(range(total))
    elif form == Form.BITMAP:
        positions = [i for i in range(total) if number(1)]
    else:
        at = -1
        for _ in range(fields):
            gap = number(gap_bits)
            at += gap + (gap < 2**gap_bits - 1)  # the largest gap stands for zeros alone
            if gap < 2**gap_bits - 1:
                positions.append(at)
    place = (place + 7) // 8 * 8
    weights = [0.0] * total
    for position in positions:
        if kind == Kind.UNIFORM:
            code = number(bits if form == Form.DENSE else max(1, (2 * top(bits) - 1).bit_length()))
            code += form != Form.DENSE and code >= top(bits)  # zero need not be said where positions are known
            weights[position] = (code - top(bits)) * scales[position // n]
        else:
            blob = number(bits).to_bytes(bits // 8, "little")
            weights[position] = float(np.frombuffer(blob, np.float32 if bits == 32 else np.float16)[0])
    assert (place + 7) // 8 == len(payload)
    return weights


class TestRoundTrip:
    @every_kind
    @pytest.mark.parametrize("share", SHARES)
    def test_what_is_written_reads_back(self, kind: Kind, bits: int, share: float) -> None:
        for shape in ((1, 1), (1, 9), (7, 1), (5, 33), (16, 64)):
            one = coded(kind, bits, shape, share)
            record, payload = one.write()
            assert len(payload) == one.payload_bytes
            assert len(record) == RECORD.size == 8
            again, used = read(record, memoryview(payload + b"more"), *shape)
            assert used == len(payload)
            assert same(again, one)
            assert again.write() == (record, payload)

    @every_kind
    @pytest.mark.parametrize("way", WAYS, ids=[f"{form.name.lower()}{bits or ''}" for form, bits in WAYS])
    def test_every_form_holds_the_same_weights(self, kind: Kind, bits: int, way: tuple[Form, int]) -> None:
        for share in (0.0, 0.03, 0.3, 1.0):
            one = coded(kind, bits, (6, 21), share)
            record, payload = forced(one, *way).write()
            again, used = read(record, memoryview(payload), 6, 21)
            assert used == len(payload)
            assert same(again, one)
            assert read_by_description(record, payload, 6, 21) == one.decode().flatten().tolist()

    @pytest.mark.parametrize("width", range(1, 9))
    @pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
    def test_packed_numbers_come_back(self, width: int, count: int) -> None:
        values = np.random.default_rng(0).integers(0, 2**width, count).astype(np.uint8)
        packed = pack_bits(values, width)
        assert len(packed) == -(-count * width // 8)
        assert int.from_bytes(packed, "little") == sum(int(v) << width * i for i, v in enumerate(values))
        assert unpack_bits(packed, width, count).tolist() == values.tolist()


class TestShortest:
    @every_kind
    @pytest.mark.parametrize("share", SHARES)
    def test_no_other_form_is_shorter(self, kind: Kind, bits: int, share: float) -> None:
        for shape in ((1, 9), (3, 11), (8, 50)):
            one = coded(kind, bits, shape, share)
            assert one.payload_bytes == min(len(forced(one, *way).write()[1]) for way in WAYS)

    @every_kind
    @pytest.mark.parametrize("places", ["front", "back", "every other", "one", "nearly half"])
    def test_nor_for_patterns_that_favour_one(self, kind: Kind, bits: int, places: str) -> None:
        values = torch.zeros(1, 81, dtype={32: torch.float32, 16: torch.float16}.get(bits, torch.int8))
        where = {
            "front": slice(48),
            "back": slice(33, None),
            "every other": slice(None, None, 2),
            "one": slice(80, None),
        }
        values[0, where.get(places, slice(1, 81, 2))] = 1
        one = CodedWeight(kind, values, bits, torch.ones(1, 1) if kind is Kind.UNIFORM else None)
        assert one.payload_bytes == min(len(forced(one, *way).write()[1]) for way in WAYS)

    @pytest.mark.parametrize("gap_bits", GAP_BITS)
    @pytest.mark.parametrize("gap", [0, 1, 2, 3, 6, 7, 8, 14, 15, 30, 100, 254, 255, 256, 600])
    def test_relative_indices_take_one_field_and_one_for_each_full_gap(self, gap: int, gap_bits: int) -> None:
        nonzero = 5
        values = torch.zeros(1, nonzero * (gap + 1) + 3, dtype=torch.int8)
        values[0, gap :: gap + 1][:nonzero] = 1
        one = CodedWeight(Kind.UNIFORM, values, 4, torch.ones(1, 1))
        record, payload = forced(one, Form.RELATIVE, gap_bits).write()
        fields = nonzero * (1 + gap // (2**gap_bits - 1))  # Han et al. 2016, figure 2, with an escape of its own
        assert RECORD.unpack(record)[-1] == fields
        assert len(payload) == 2 + -(-fields * gap_bits // 8) + -(-nonzero * 4 // 8)
        assert same(read(record, memoryview(payload), 1, values.numel())[0], one)

    @every_kind
    def test_nothing_but_zeros_takes_no_byte_but_scales(self, kind: Kind, bits: int) -> None:
        one = coded(kind, bits, (4, 30), 0.0)
        assert one.nonzero == 0
        assert one.payload_bytes == (8 if kind is Kind.UNIFORM else 0)

    def test_nonzeros_are_counted(self) -> None:
        one = coded(Kind.UNIFORM, 8, (10, 10), 0.3)
        assert one.nonzero == int(torch.count_nonzero(one.values))

    def test_knowing_its_length_keeps_no_memory(self) -> None:
        many = [coded(Kind.UNIFORM, 4, (64, 512), 0.4, seed) for seed in range(8)]
        tracemalloc.start()
        try:
            assert all(one.payload_bytes > 0 and one.nonzero > 0 and one.write() for one in many)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < sum(one.values.nbytes for one in many) / 8


class TestDamage:
    """Whatever the bytes are: an ArtifactError, or weights of the right shape, and no more memory than those take."""

    def try_to_read(self, record: bytes, payload: bytes, shape: tuple[int, int]) -> bool:
        try:
            found, used = read(record, memoryview(payload), *shape)
        except ArtifactError:
            return False
        assert found.values.shape == shape
        assert found.decode().shape == shape
        assert 0 <= used <= len(payload)
        assert found.scales is None or bool(torch.isfinite(found.scales).all())
        return True

    @pytest.mark.parametrize("seed", range(10))
    def test_damaged_bytes_are_refused_or_read_as_other_weights(self, seed: int) -> None:
        draw = random.Random(seed)
        read_anyway = 0
        for _ in range(400):
            shape = (draw.randrange(1, 6), draw.randrange(1, 40))
            kind, bits = draw.choice(KINDS)
            one = coded(kind, bits, shape, draw.random(), seed=draw.randrange(2**20))
            record, payload = (bytearray(part) for part in forced(one, *draw.choice(WAYS)).write())
            for _ in range(draw.randrange(1, 4)):
                part = draw.choice([record, record, payload])
                if part:
                    part[draw.randrange(len(part))] = draw.randrange(256)
            if draw.random() < 0.3:
                del payload[draw.randrange(len(payload) + 1) :]
            read_anyway += self.try_to_read(bytes(record), bytes(payload), shape)
        assert 0 < read_anyway < 400

    @pytest.mark.parametrize("seed", range(5))
    def test_random_bytes_are_refused_or_read_as_other_weights(self, seed: int) -> None:
        draw = random.Random(seed)
        answers = [
            self.try_to_read(draw.randbytes(8), draw.randbytes(draw.randrange(300)), (draw.randrange(1, 6), 7))
            for _ in range(400)
        ]
        assert False in answers

    @every_kind
    def test_whatever_is_cut_off_is_missed(self, kind: Kind, bits: int) -> None:
        for way in WAYS:
            record, payload = forced(coded(kind, bits, (3, 20), 0.5), *way).write()
            for length in range(len(payload)):
                with pytest.raises(ArtifactError, match="truncated"):
                    read(record, memoryview(payload)[:length], 3, 20)

    @pytest.mark.parametrize("length", [0, 7, 9])
    def test_a_record_of_another_length_is_refused(self, length: int) -> None:
        with pytest.raises(ArtifactError, match=f"a record of {length} bytes"):
            read(bytes(length), memoryview(b""), 3, 20)

    def test_a_huge_count_takes_no_memory(self) -> None:
        shape, payload = (100, 100), bytes(1 << 16)
        tracemalloc.start()
        try:
            for form, gap_bits in WAYS:
                for kind, bits in KINDS:
                    record = RECORD.pack(form * 16 + kind, bits, gap_bits, 127, 2**32 - 1)
                    self.try_to_read(record, payload, shape)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 40 * 100 * 100

    @pytest.mark.parametrize("exponent", [-128, 0, 127])
    def test_a_scale_that_is_not_finite_is_refused(self, exponent: int) -> None:
        record = RECORD.pack(Kind.UNIFORM, 4, 0, exponent, 0)
        for scale in (np.inf, np.nan, *([60000.0] if exponent == 127 else [])):
            with pytest.raises(ArtifactError, match="not finite"):
                read(record, memoryview(np.array([scale], np.float16).tobytes() + bytes(5)), 1, 10)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_a_code_that_is_none_is_refused(self, bits: int) -> None:
        record, ones = RECORD.pack(Form.DENSE * 16 + Kind.UNIFORM, bits, 0, 0, 0), b"\xff" * bits
        with pytest.raises(ArtifactError, match=f"above the {bits} bits' largest"):
            read(record, memoryview(bytes(2) + ones), 1, 8)

    def test_more_gaps_than_weights_are_refused(self) -> None:
        for fields in (8, 9):
            record = RECORD.pack(Form.RELATIVE * 16 + Kind.UNIFORM, 4, 1, 0, fields)
            escapes = memoryview(bytes(2) + b"\xff\xff")
            if fields == 8:
                assert not read(record, escapes, 1, 8)[0].values.any()
            else:
                with pytest.raises(ArtifactError, match="9 gaps of 1 bits do not fit 8 weights"):
                    read(record, escapes, 1, 8)
