"""Coded weights as bytes: against a reader written from the format's description."""

import struct
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch

from compress.coding import RECORD, CodedWeight, Form, Kind, read
from compress.packing import GAP_BITS, gap_fields, gap_lengths, gap_positions, pack_bits, unpack_bits
from compress.quantization.activations import InputGrid
from compress.quantization.uniform import encode, fit
from tests.coded import CODINGS, ONE, SHARES, WAYS, coded, every_integer, every_kind, forced, same


class ByDescription:
    """A second reader, one bit at a time: range of the input, steps, smallest codes, entries, positions, values."""

    def __init__(self, record: bytes, payload: bytes, channels: int, n: int) -> None:
        tag, widths, self.exponent, flags, self.count = RECORD.unpack(record)
        self.form, self.kind = divmod(tag, 16)
        self.gap_bits, self.bits = divmod(widths, 16)
        self.flags, self.payload, self.place = flags, payload, 0
        self.channels, self.n = channels, n

    def number(self, width: int) -> int:
        found = int.from_bytes(self.payload, "little") >> self.place & (1 << width) - 1
        self.place += width
        return found

    def align(self) -> None:
        self.place = (self.place + 7) // 8 * 8

    def real(self, bits: int) -> float:
        (found,) = struct.unpack({16: "<e", 32: "<f"}[bits], self.number(bits).to_bytes(bits // 8, "little"))
        return float(found)

    def levels(self) -> list[tuple[list[float], int]]:
        """For each weight the numbers that codes stand for, and which of them is the zero; nothing for floats."""
        total, size = self.channels * self.n, 2**self.bits
        if self.flags & 8:  # static inputs
            self.number(64)
        if self.kind == Kind.CODEBOOK:
            entries = [self.real(16) * 2.0**self.exponent for _ in range(size - 1)]
            below = sum(entry < 0 for entry in entries)
            return [([*entries[:below], 0.0, *entries[below:]], below)] * total
        if self.kind != Kind.UNIFORM:
            return []
        per = self.flags % 4  # tensor, channel, group
        groups = self.number(32) if per == 2 else 1
        cells = self.channels * groups if per else 1
        steps = [self.real(16) * 2.0**self.exponent for _ in range(cells)]
        count = size if self.flags & 4 else size - 1
        below_zero = [self.number(self.bits) for _ in range(cells)] if self.flags & 4 else [size // 2 - 1] * cells
        self.align()
        known = [
            ([(k - below) * step for k in range(count)], below) for step, below in zip(steps, below_zero, strict=True)
        ]
        return [known[i * cells // total] for i in range(total)]

    def positions(self) -> list[int]:
        total = self.channels * self.n
        if self.form == Form.DENSE:
            return list(range(total))
        if self.form == Form.BITMAP:
            found = [i for i in range(total) if self.number(1)]
        else:
            at, found = -1, []
            for _ in range(self.count):
                gap = self.number(self.gap_bits)
                at += gap + (gap < 2**self.gap_bits - 1)  # the largest gap stands for zeros alone
                if gap < 2**self.gap_bits - 1:
                    found.append(at)
        self.align()
        return found

    def weights(self) -> list[float]:
        levels, positions = self.levels(), self.positions()
        weights = [0.0] * (self.channels * self.n)
        for position in positions:
            if not levels:
                weights[position] = self.real(32 if self.kind == Kind.FLOAT32 else 16)
                continue
            numbers, zero = levels[position]
            if self.form == Form.DENSE:
                weights[position] = numbers[self.number(self.bits)]
            else:  # zero need not be said where positions are known
                left = numbers[:zero] + numbers[zero + 1 :]
                weights[position] = left[self.number((len(left) - 1).bit_length())]
        self.align()
        assert self.place // 8 == len(self.payload)
        return weights


class TestRoundTrip:
    @every_kind
    @pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
    def test_what_is_written_reads_back(self, kind: Kind, bits: int, share: float) -> None:
        for seed, shape in enumerate(((1, 9), (5, 33), (4, 12), (7, 1))):
            one = coded(kind, bits, shape, share, seed + bits)
            for coding in CODINGS:
                record, payload = one.write(coding)
                assert len(payload) == one.payload_bytes(coding)
                assert len(record) == RECORD.size == 8
                again, used = read(record, memoryview(payload + b"more"), *shape)
                assert used == len(payload)
                assert same(again, one)
                assert again.write(coding) == (record, payload)
                assert torch.equal(again.decode(), one.decode())

    @every_kind
    @pytest.mark.parametrize("way", WAYS, ids=[f"{form.name.lower()}{bits or ''}" for form, bits in WAYS])
    def test_every_form_holds_the_same_weights(self, kind: Kind, bits: int, way: tuple[Form, int]) -> None:
        for seed, share in enumerate((0.0, 0.03, 0.3, 1.0, 0.5, 0.5)):
            one = coded(kind, bits, (4, 12), share, seed)
            record, payload = forced(one, *way).write()
            again, used = read(record, memoryview(payload), 4, 12)
            assert used == len(payload)
            assert same(again, one)
            assert ByDescription(record, payload, 4, 12).weights() == one.decode().flatten().tolist()

    def test_a_tensor_on_a_device_of_its_own_layout_is_written_in_the_order_of_its_rows(self) -> None:
        one = coded(Kind.UNIFORM, 4, (8, 9), 0.5)
        assert replace(one, values=one.values.T.contiguous().T).write() == one.write()


class TestPacking:
    @pytest.mark.parametrize("width", range(9))
    @pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 100])
    def test_packed_numbers_come_back(self, width: int, count: int) -> None:
        values = np.random.default_rng(0).integers(0, 2**width, count).astype(np.uint8)
        packed = pack_bits(values, width)
        assert len(packed) == -(-count * width // 8)
        assert int.from_bytes(packed, "little") == sum(int(v) << width * i for i, v in enumerate(values))
        assert unpack_bits(packed, width, count).tolist() == values.tolist()

    @pytest.mark.parametrize("gap_bits", GAP_BITS)
    @pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 1.0])
    def test_relative_indices_come_back(self, gap_bits: int, share: float) -> None:
        positions = np.flatnonzero(np.random.default_rng(0).random(5000) < share)
        fields = gap_fields(positions, gap_bits)
        assert fields.size == gap_lengths(positions)[gap_bits]
        assert not fields.size or fields.max() < 2**gap_bits
        assert gap_positions(fields, gap_bits, 5000).tolist() == positions.tolist()


class TestShortest:
    @every_kind
    @pytest.mark.parametrize("share", SHARES)
    def test_no_other_form_is_shorter(self, kind: Kind, bits: int, share: float) -> None:
        for seed, shape in enumerate(((1, 9), (3, 11), (8, 50), (4, 48))):
            one = coded(kind, bits, shape, share, seed)
            assert one.payload_bytes() == min(len(forced(one, *way).write()[1]) for way in WAYS)

    @every_kind
    @pytest.mark.parametrize("places", ["front", "back", "every other", "one", "nearly half"])
    def test_nor_for_patterns_that_favour_one(self, kind: Kind, bits: int, places: str) -> None:
        like = coded(kind, bits, (1, 81), 1.0)
        where = {
            "front": slice(48),
            "back": slice(33, None),
            "every other": slice(None, None, 2),
            "one": slice(80, None),
        }
        values = torch.zeros_like(like.values)
        values[0, where.get(places, slice(1, 81, 2))] = 1
        one = replace(like, values=values)
        assert one.payload_bytes() == min(len(forced(one, *way).write()[1]) for way in WAYS)

    @pytest.mark.parametrize("gap_bits", GAP_BITS)
    @pytest.mark.parametrize("gap", [0, 1, 2, 3, 6, 7, 8, 14, 15, 30, 100, 254, 255, 256, 600])
    def test_relative_indices_take_one_field_and_one_for_each_full_gap(self, gap: int, gap_bits: int) -> None:
        nonzero = 5
        values = torch.zeros(1, nonzero * (gap + 1) + 3, dtype=torch.int8)
        values[0, gap :: gap + 1][:nonzero] = 1
        one = CodedWeight(Kind.UNIFORM, values, 4, ONE)
        record, payload = forced(one, Form.RELATIVE, gap_bits).write()
        fields = nonzero * (1 + gap // (2**gap_bits - 1))  # Han et al. 2016, figure 2, with an escape of its own
        assert RECORD.unpack(record)[-1] == fields
        assert len(payload) == 2 + -(-fields * gap_bits // 8) + -(-nonzero * 4 // 8)
        assert same(read(record, memoryview(payload), 1, values.numel())[0], one)

    @every_kind
    def test_nothing_but_zeros_takes_no_byte_but_scales(self, kind: Kind, bits: int) -> None:
        one = coded(kind, bits, (4, 30), 0.0)
        assert one.nonzero == 0
        expected = {Kind.UNIFORM: 2 * 4, Kind.CODEBOOK: 2 * (2**bits - 1)}.get(kind, 0)
        assert [one.payload_bytes(coding) for coding in CODINGS] == [expected] * len(CODINGS)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_what_stands_before_the_codes_is_as_long_as_it_must_be(self, bits: int) -> None:
        rows, kept = torch.zeros(6, 24), torch.ones(6, 24, dtype=torch.bool)
        lengths = {
            ("tensor", None): 2 + -(-bits // 8),
            ("channel", None): 6 * 2 + -(-6 * bits // 8),
            ("group", 8): 4 + 18 * 2 + -(-18 * bits // 8),
        }
        for (per, size), length in lengths.items():
            grid = fit(rows, kept, bits, scale_per=per, group_size=size, symmetric=False)  # type: ignore[arg-type]
            one = CodedWeight(Kind.UNIFORM, encode(rows, grid, bits), bits, grid)
            assert one.payload_bytes() == length
            assert replace(one, inputs=InputGrid(4)).payload_bytes() == length
            assert replace(one, inputs=InputGrid(4, -1.0, 1.0)).payload_bytes() == length + 8

    def test_nonzeros_are_counted(self) -> None:
        one = coded(Kind.UNIFORM, 8, (10, 10), 0.3)
        assert one.nonzero == int(torch.count_nonzero(one.values))

    def test_knowing_its_length_keeps_no_memory(self) -> None:
        many = [coded(Kind.UNIFORM, 4, (64, 512), 0.4, 6 * seed) for seed in range(4)]
        tracemalloc.start()
        try:
            for coding in CODINGS:
                assert all(one.payload_bytes(coding) > 0 and one.nonzero > 0 and one.write(coding) for one in many)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert kept < sum(one.values.nbytes for one in many) / 8


class TestEntropy:
    @every_integer
    def test_it_is_taken_where_it_is_shorter_and_only_when_asked_for(self, kind: Kind, bits: int) -> None:
        one = coded(kind, bits, (64, 96), 0.3, seed=bits)
        packed, entropy = one.write(), one.write("entropy")
        assert len(entropy[1]) == one.payload_bytes("entropy") <= one.payload_bytes() == len(packed[1])
        forms = [RECORD.unpack(record)[0] // 16 for record, _ in (packed, entropy)]
        assert forms[0] != Form.ENTROPY
        assert (forms[1] == Form.ENTROPY) == (len(entropy[1]) < len(packed[1]))
        if bits > 2:
            assert forms[1] == Form.ENTROPY
        assert same(read(*entropy[:1], memoryview(entropy[1]), 64, 96)[0], one)

    @every_integer
    def test_it_holds_the_same_weights_where_it_is_longer(self, kind: Kind, bits: int) -> None:
        for seed in range(6):
            one = coded(kind, bits, (3, 4), 0.7, seed)
            record, payload = forced(one, Form.ENTROPY, 0).write("entropy")
            again, used = read(record, memoryview(payload + b"more"), 3, 4)
            assert used == len(payload)
            assert same(again, one)

    @pytest.mark.parametrize("kind", [Kind.FLOAT32, Kind.FLOAT16])
    def test_floats_have_none(self, kind: Kind) -> None:
        one = coded(kind, 32 if kind is Kind.FLOAT32 else 16, (20, 30), 0.5)
        assert one.write("entropy") == one.write()
        assert one.payload_bytes("entropy") == one.payload_bytes()
