"""Records of TFRecord and ArrayRecord files: where they lie, what they hold, how many steps of an episode."""

from __future__ import annotations

import functools
import mmap
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np

_POLYNOMIAL = 0x82F63B78  # CRC-32C, bits reversed
_HEADER, _FOOTER = 12, 4  # length and its checksum before a record, checksum of the record after it
_TORN = "the file is torn or no TFRecord file; fetch it again"


class Record(NamedTuple):
    """An episode in a file."""

    number: int
    start: int
    """First byte in a TFRecord file; 0 in an ArrayRecord file, which is read by numbers."""
    stop: int
    num_steps: int


def index_records(path: Path) -> list[Record]:
    """All records of a TFRecord or ArrayRecord file, without reading their pictures where the file allows.

    Raises:
        ValueError: naming the file and the record, for one that is torn or no episode.
    """
    if ".array_record" in path.name:
        whole = enumerate(_array_records(path))
        return [Record(number, 0, len(data), _num_steps(data, 0, len(data), path, number)) for number, data in whole]
    if path.stat().st_size == 0:
        return []
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return [
            Record(number, start, stop, _num_steps(data, start, stop, path, number))
            for number, (start, stop) in enumerate(_tfrecord_spans(data, path))
        ]


def read_record(path: Path, record: Record) -> bytes:
    """The bytes of a record; ValueError, naming file and record, where they do not fit their checksum."""
    if ".array_record" in path.name:
        return next(_array_records(path, [record.number]))
    with path.open("rb") as file:
        file.seek(record.start)
        data = file.read(record.stop - record.start)
        footer = file.read(_FOOTER)
    if len(footer) < _FOOTER or masked_crc32c(data) != int.from_bytes(footer, "little"):
        raise ValueError(f"{path}, record {record.number}: the checksum is wrong; {_TORN}.")
    return data


def masked_crc32c(data: bytes) -> int:
    """Checksum of TFRecord files, from its definition: CRC-32C, turned by 15 bits, plus a constant.

    The checksum is linear: many pieces of the data go through the table at once, and are joined in pairs afterwards.
    """
    table, bits = _crc_table(), np.uint32(1) << np.arange(32, dtype=np.uint32)
    pairs = -(-len(data) // 2)
    length = 1 << max(1, pairs.bit_length() // 2 - 2)  # pairs of bytes in a piece
    count = 1 << max(0, -(-pairs // length) - 1).bit_length()
    padded = np.zeros(2 * count * length, np.uint8)  # zeros in front do not change a checksum that begins with zeros,
    inner = padded[padded.size - len(data) :]
    inner[:] = np.frombuffer(data, np.uint8)
    inner[:4] ^= 255  # and one that begins with ones is that of data whose first four bytes are inverted

    def linear(images: np.ndarray, values: np.ndarray) -> np.ndarray:
        """The linear map with these images of the bits (32,), of values (N,)."""
        return np.bitwise_xor.reduce(np.where(values[:, None] & bits, images, np.uint32(0)), axis=1)

    crc = np.zeros(count, np.uint32)
    for column in np.ascontiguousarray(padded.view("<u2").reshape(count, length).T):
        crc = table[(crc ^ column) & 0xFFFF] ^ (crc >> 16)
    behind = table[bits & 0xFFFF] ^ (bits >> 16)  # what two zero bytes behind do to each bit, then those of a piece
    for _ in range(length.bit_length() - 1):
        behind = linear(behind, behind)
    while len(crc) > 1:
        crc, behind = linear(behind, crc[0::2]) ^ crc[1::2], linear(behind, behind)
    whole = int(crc[0]) ^ 0xFFFFFFFF
    return ((whole >> 15 | whole << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _crc_table() -> np.ndarray:
    """What each pair of bytes does to a checksum, uint32 (65536,)."""
    crc = np.arange(1 << 16, dtype=np.uint32)
    for _ in range(16):
        crc = np.where(crc & 1, crc >> 1 ^ np.uint32(_POLYNOMIAL), crc >> 1)
    return crc


def _tfrecord_spans(data: mmap.mmap, path: Path) -> Iterator[tuple[int, int]]:
    """First byte and end of each record; ValueError for one that is torn."""
    position, number = 0, 0
    while position < len(data):
        start = position + _HEADER
        length = int.from_bytes(data[position : position + 8], "little")
        if start + length + _FOOTER > len(data):
            raise ValueError(f"{path}, record {number}: it begins at byte {position} and is not whole; {_TORN}.")
        yield start, start + length
        position, number = start + length + _FOOTER, number + 1


def _num_steps(data: mmap.mmap | bytes, start: int, stop: int, path: Path, number: int) -> int:
    """Number of steps of a serialised tf.train.Example in data[start:stop], from its booleans is_first alone.

    The message is walked, not parsed: features (1) of entries (1) with a key (1) and a feature (2), whose list holds
    one byte a boolean.
    """
    try:
        for features in _fields(data, start, stop).values():
            for entry in _entries(data, *features):
                parts = _fields(data, *entry)
                if data[slice(*parts[1])] == b"steps/is_first":
                    (values,) = _fields(data, *parts[2]).values()
                    (packed,) = _fields(data, *values).values()
                    return packed[1] - packed[0]
    except (IndexError, KeyError, ValueError) as error:
        raise ValueError(f"{path}, record {number}: it is no tf.train.Example; {_TORN}.") from error
    raise ValueError(f"{path}, record {number}: it has no steps/is_first, expected an episode in the layout of RLDS.")


def _entries(data: mmap.mmap | bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """First byte and end of each field of a message."""
    return (span for _, span in _walk(data, start, stop))


def _fields(data: mmap.mmap | bytes, start: int, stop: int) -> dict[int, tuple[int, int]]:
    """Number of each field of a message -> its first byte and end."""
    return dict(_walk(data, start, stop))


def _walk(data: mmap.mmap | bytes, position: int, stop: int) -> Iterator[tuple[int, tuple[int, int]]]:
    while position < stop:
        tag, position = _varint(data, position)
        length, position = _varint(data, position)
        if tag & 7 != 2 or position + length > stop:
            raise ValueError(f"field of wire type {tag & 7} and {length} bytes")
        yield tag >> 3, (position, position + length)
        position += length


def _varint(data: mmap.mmap | bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, and the position behind it."""
    value, shift = 0, 0
    while True:
        byte = data[position]
        value, position, shift = value | (byte & 127) << shift, position + 1, shift + 7
        if byte < 128:
            return value, position


def _array_records(path: Path, numbers: Iterable[int] | None = None) -> Iterator[bytes]:
    """Records of an ArrayRecord file, all or those of these numbers; ValueError where its own checksums are wrong."""
    from array_record.python.array_record_module import ArrayRecordReader

    try:
        with closing(ArrayRecordReader(str(path))) as reader:
            for number in range(reader.num_records()) if numbers is None else numbers:
                yield reader.read([number])[0]
    except RuntimeError as error:
        raise ValueError(f"{path} is torn or no ArrayRecord file ({error}); fetch it again.") from error
