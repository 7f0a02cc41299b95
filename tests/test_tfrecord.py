"""TFRecord files: records are found, measured and checked; what is torn is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from astra_env.datasets.tfrecord import index_records, masked_crc32c, read_record


def slow_checksum(data: bytes) -> int:
    """From the definition, bit by bit."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def example(num_steps: int) -> bytes:
    """An episode as tensorflow-datasets serialises it, with a large picture a step."""
    proto = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    message = proto.Example()
    features = message.features.feature
    features["steps/observation/image"].bytes_list.value.extend([bytes(500)] * num_steps)
    features["steps/reward"].float_list.value.extend([0.5] * num_steps)
    features["steps/is_first"].int64_list.value.extend([1] + [0] * (num_steps - 1))
    features["steps/is_last"].int64_list.value.extend([0] * (num_steps - 1) + [1])
    return message.SerializeToString()


def write(path: Path, records: list[bytes]) -> Path:
    with path.open("wb") as file:
        for record in records:
            length = struct.pack("<Q", len(record))
            file.write(length + struct.pack("<I", slow_checksum(length)))
            file.write(record + struct.pack("<I", slow_checksum(record)))
    return path


def test_the_checksum_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    for size in (4, 5, 8, 63, 64, 65, 1000, 4097, 70001):
        data = rng.bytes(size)
        assert masked_crc32c(data) == slow_checksum(data)
    published = 0xE3069283  # CRC-32C of the nine digits
    assert masked_crc32c(b"123456789") == ((published >> 15 | published << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_records_are_found_with_their_numbers_of_steps(tmp_path):
    episodes = [example(3), example(200), example(1)]
    path = write(tmp_path / "a.tfrecord-00000-of-00001", episodes)
    records = index_records(path)
    assert [record.num_steps for record in records] == [3, 200, 1]
    assert [read_record(path, record) for record in records] == episodes
    assert index_records(write(tmp_path / "none.tfrecord", [])) == []


def test_a_torn_or_changed_file_is_named_with_the_record(tmp_path):
    path = write(tmp_path / "a.tfrecord", [example(3), example(4)])
    whole = path.read_bytes()
    first = 16 + len(example(3))
    for size in (len(whole) - 1, len(whole) - 40, first + 5):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=rf"a.tfrecord, record 1: it begins at byte {first} and is not whole"):
            index_records(path)
    path.write_bytes(whole)
    records = index_records(path)
    path.write_bytes(whole.replace(bytes(500), bytes(499) + b"1"))
    with pytest.raises(ValueError, match=r"record 1: the checksum is wrong"):
        read_record(path, records[1])


@pytest.mark.parametrize("content", [b"no records, however long they are " * 20, bytes(100)])
def test_what_is_no_tfrecord_file_is_refused(tmp_path, content):
    path = tmp_path / "a.tfrecord"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a.tfrecord, record 0"):
        index_records(path)


def test_what_is_no_episode_is_refused(tmp_path):
    proto = pytest.importorskip("tensorflow_datasets.proto").tf_example_pb2
    message = proto.Example()
    message.features.feature["label"].int64_list.value.append(1)
    path = write(tmp_path / "a.tfrecord", [message.SerializeToString()])
    with pytest.raises(ValueError, match=r"record 0: it has no steps/is_first"):
        index_records(path)
    path = write(tmp_path / "b.tfrecord", [b"something else"])
    with pytest.raises(ValueError, match=r"record 0: it is no tf.train.Example"):
        index_records(path)
