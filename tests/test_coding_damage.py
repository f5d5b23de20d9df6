"""Coded weights against damage: an error, or some weights, never anything else."""

import random
import struct
import tracemalloc

import numpy as np
import pytest
import torch

from compress.coding import RECORD, Form, Kind, read
from compress.quantization.uniform import top
from spaces.errors import ArtifactError
from tests.coded import (
    INTEGERS,
    KINDS,
    WAYS,
    coded,
    every_kind,
    forced,
    same,
)


class TestDamage:
    """Whatever the bytes are: an ArtifactError, or weights of the right shape, and no more memory than those take."""

    def try_to_read(self, record: bytes, payload: bytes, shape: tuple[int, int]) -> bool:
        try:
            found, used = read(record, memoryview(payload), *shape)
        except ArtifactError:
            return False
        assert found.values.shape == shape
        assert found.decode().shape == shape
        assert found.decode().dtype == torch.float32
        assert 0 <= used <= len(payload)
        if found.grid is not None:
            assert bool(torch.isfinite(found.grid.step).all())
            least, most = -top(found.bits), top(found.bits)
            if found.grid.low is not None:
                least, most = int(found.grid.low.min()), int(found.grid.low.max()) + 2**found.bits - 1
            assert bool(((found.values >= least) & (found.values <= most)).all())
        if found.entries is not None:
            assert bool(torch.isfinite(found.entries).all())
        record, payload = found.write()  # it is well formed
        assert same(read(record, memoryview(payload), *shape)[0], found)
        return True

    @pytest.mark.parametrize("number", range(8))
    def test_damaged_bytes_are_refused_or_read_as_other_weights(self, number: int) -> None:
        draw = random.Random(number)
        read_anyway = 0
        for _ in range(300):
            shape, seed = draw.choice([(1, 7), (3, 20), (5, 12), (2, 39)]), draw.randrange(6)
            kind, bits = draw.choice(KINDS)
            way = draw.choice([*WAYS, *[(Form.ENTROPY, 0)] * 4] if (kind, bits) in INTEGERS else WAYS)
            one = forced(coded(kind, bits, shape, (seed + 1) / 6, seed), *way)
            record, payload = (bytearray(part) for part in one.write("entropy"))
            for _ in range(draw.randrange(1, 4)):
                part = draw.choice([record, payload, payload])
                if part:
                    part[draw.randrange(len(part))] = draw.randrange(256)
            if draw.random() < 0.3:
                del payload[draw.randrange(len(payload) + 1) :]
            read_anyway += self.try_to_read(bytes(record), bytes(payload), shape)
        assert 0 < read_anyway < 300

    @pytest.mark.parametrize("seed", range(5))
    def test_random_bytes_are_refused_or_read_as_other_weights(self, seed: int) -> None:
        draw = random.Random(seed)
        answers = []
        for _ in range(400):
            kind, bits = draw.choice(INTEGERS)
            tag = bytes([draw.randrange(4) * 16 + kind, bits, draw.randrange(256), draw.choice([0, 1, 2, 5, 64, 72])])
            record = draw.choice([draw.randbytes(8), tag + bytes(4), tag + bytes([draw.randrange(40), 0, 0, 0])])
            shape = (draw.randrange(1, 6), 7)
            answers.append(self.try_to_read(record, draw.randbytes(draw.randrange(300)), shape))
        assert set(answers) == {False, True}

    @every_kind
    def test_whatever_is_cut_off_is_missed(self, kind: Kind, bits: int) -> None:
        for seed in range(3):
            for way in [*WAYS, (Form.ENTROPY, 0)] if (kind, bits) in INTEGERS else WAYS:
                record, payload = forced(coded(kind, bits, (2, 12), 0.5, seed), *way).write("entropy")
                lengths = range(0, len(payload), 1 if len(payload) < 30 else 13)
                for length in [*lengths, len(payload) - 1]:
                    with pytest.raises(ArtifactError, match="truncated"):
                        read(record, memoryview(payload)[:length], 2, 12)

    @pytest.mark.parametrize("length", [0, 7, 9])
    def test_a_record_of_another_length_is_refused(self, length: int) -> None:
        with pytest.raises(ArtifactError, match=f"a record of {length} bytes"):
            read(bytes(length), memoryview(b""), 3, 20)

    def test_a_huge_count_takes_no_memory(self) -> None:
        shape, payload = (100, 100), bytes([255] * 4) + bytes(1 << 16)
        tracemalloc.start()
        try:
            for form, gap_bits in [*WAYS, (Form.ENTROPY, 0)]:
                for kind, bits in KINDS:
                    for flags in (0, 1, 2, 4, 5, 6):
                        widths = gap_bits * 16 + (0 if bits > 8 else bits)
                        record = RECORD.pack(form * 16 + kind, widths, 127, flags, 2**32 - 1)
                        self.try_to_read(record, payload, shape)
                        self.try_to_read(record, payload[4:], shape)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 64 * 100 * 100

    @pytest.mark.parametrize("exponent", [-126, 0, 127])
    @pytest.mark.parametrize("kind", [Kind.UNIFORM, Kind.CODEBOOK])
    def test_a_scale_or_entry_that_is_not_finite_is_refused(self, kind: Kind, exponent: int) -> None:
        record = RECORD.pack(kind, 4, exponent, 0, 0)
        for scale in (np.inf, np.nan, *([60000.0] if exponent == 127 else [])):
            with pytest.raises(ArtifactError, match="not finite"):
                read(record, memoryview(np.full(15, scale, np.float16).tobytes() + bytes(5)), 1, 10)

    def test_a_negative_scale_is_refused(self) -> None:
        with pytest.raises(ArtifactError, match="negative"):
            read(RECORD.pack(Kind.UNIFORM, 4, 0, 0, 0), memoryview(np.float16(-1).tobytes() + bytes(5)), 1, 10)

    def test_entries_that_are_not_in_order_are_refused(self) -> None:
        entries = np.array([1, 3, 2], np.float16).tobytes()
        with pytest.raises(ArtifactError, match="not in order"):
            read(RECORD.pack(Kind.CODEBOOK, 2, 0, 0, 0), memoryview(entries + bytes(5)), 1, 10)

    @pytest.mark.parametrize("groups", [0, 1, 3, 20, 2**32 - 1])
    def test_groups_that_do_not_divide_a_channel_are_refused(self, groups: int) -> None:
        payload = struct.pack("<I", groups) + bytes(1000)
        with pytest.raises(ArtifactError, match=f"{groups} groups do not divide 10 weights"):
            read(RECORD.pack(Kind.UNIFORM, 4, 0, 2, 0), memoryview(payload), 2, 10)

    @pytest.mark.parametrize("bits", range(2, 9))
    def test_a_code_that_is_none_is_refused(self, bits: int) -> None:
        ones = memoryview(bytes(2) + b"\xff" * (bits + 1))
        for form in (Form.DENSE, Form.BITMAP)[: 1 + (bits > 2)]:  # 1 bit is always one of two
            with pytest.raises(ArtifactError, match=f"none of the {2**bits - 1} of {bits} bits"):
                read(RECORD.pack(form * 16 + Kind.UNIFORM, bits, 0, 0, 0), ones, 1, 8)

    @pytest.mark.parametrize(("low", "high"), [(1.0, 2.0), (-2.0, -1.0), (np.nan, 1.0), (0.0, np.inf)])
    def test_a_range_of_inputs_that_is_none_is_refused(self, low: float, high: float) -> None:
        with pytest.raises(ArtifactError, match="range"):
            read(
                RECORD.pack(Kind.FLOAT32, 0, 0, 8 + 16 * 5, 0),
                memoryview(struct.pack("<2f10f", low, high, *[0] * 10)),
                1,
                10,
            )

    @pytest.mark.parametrize(
        ("tag", "widths", "exponent", "flags", "count"),
        [
            (4, 4, 0, 0, 0),  # a kind from the future
            (4 * 16, 0, 0, 0, 0),  # a form from the future
            (2, 1, 0, 0, 0),  # 1 bit
            (2, 9, 0, 0, 0),
            (3, 0, 0, 0, 0),
            (0, 8, 0, 0, 0),  # a float of 8 bits
            (0, 0, 1, 0, 0),  # with an exponent
            (2, 4, -127, 0, 0),
            (0, 0, 0, 1, 0),  # with scales
            (3, 4, 0, 4, 0),  # an asymmetric codebook
            (2, 4, 0, 3, 0),  # a layout from the future
            (2, 4, 0, 8, 0),  # a range of float inputs
            (2, 4, 0, 3 * 16, 0),  # inputs of 3 bits
            (2, 4, 0, 9 * 16, 0),
            (48, 0, 0, 0, 1),  # entropy coded floats
            (2, 4, 0, 0, 1),  # a count where there is none
            (2, 20, 0, 0, 0),  # relative indices in dense form
            (32 + 2, 4, 0, 0, 1),  # of no bits
            (32 + 2, 9 * 16 + 4, 0, 0, 1),  # of 9 bits
        ],
    )
    def test_a_record_that_no_site_has_is_refused(
        self, tag: int, widths: int, exponent: int, flags: int, count: int
    ) -> None:
        with pytest.raises(ArtifactError, match="damaged"):
            read(RECORD.pack(tag, widths, exponent, flags, count), memoryview(bytes(1000)), 1, 10)

    def test_more_gaps_than_weights_are_refused(self) -> None:
        for fields in (8, 9):
            record = RECORD.pack(Form.RELATIVE * 16 + Kind.UNIFORM, 16 + 4, 0, 0, fields)
            escapes = memoryview(bytes(2) + b"\xff\xff")
            if fields == 8:
                assert not read(record, escapes, 1, 8)[0].values.any()
            else:
                with pytest.raises(ArtifactError, match="9 gaps of 1 bits do not fit 8 weights"):
                    read(record, escapes, 1, 8)
