"""What goes over the wire: chunks of pictures with a header, and a visitor's own picture."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

try:
    from PIL import Image, ImageOps
except ImportError as error:
    raise ImportError("astra-env play needs the package pillow; install it with: pip install '.[play]'") from error

MAX_UPLOAD = 8 * 2**20
"""Bytes of an uploaded picture."""
MAX_PIXELS = 40_000_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
# Colours at full resolution: each pixel of a small picture is a large square on the page.
_JPEG = (cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444)


def encode_pictures(frames: np.ndarray) -> list[bytes]:
    """Frames uint8 (T, H, W, 3) as T JPEG files."""
    return [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), _JPEG)[1].tobytes() for frame in frames]


def pack(header: dict[str, Any], pictures: Sequence[Sequence[bytes]]) -> bytes:
    """One message: length of the header (4 bytes, big-endian), the header as JSON, and the pictures of all branches.

    Their sizes in bytes are told in the header, as ``sizes`` of each entry of ``branches``.
    """
    for branch, files in zip(header["branches"], pictures, strict=True):
        branch["sizes"] = [len(file) for file in files]
    text = json.dumps(header).encode()
    return b"".join([len(text).to_bytes(4, "big"), text, *(file for files in pictures for file in files)])


def unpack(message: bytes) -> tuple[dict[str, Any], list[list[bytes]]]:
    """Header and pictures of what `pack` made."""
    start = 4 + int.from_bytes(message[:4], "big")
    header, pictures = json.loads(message[4:start]), []
    for branch in header["branches"]:
        ends = (start + np.cumsum(branch["sizes"])).tolist()
        pictures.append([message[end - size : end] for end, size in zip(ends, branch["sizes"], strict=True)])
        start = ends[-1]
    return header, pictures


def read_upload(content: bytes) -> np.ndarray:
    """A visitor's picture, upright, uint8 (H, W, 3).

    Raises:
        ValueError: it is no picture, or too large; nothing of it is decoded then.
    """
    if len(content) > MAX_UPLOAD:
        raise ValueError(f"The picture has {len(content) / 2**20:.1f} MB, expected {MAX_UPLOAD // 2**20} MB at most.")
    try:
        with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            width, height = image.size
            if width * height <= MAX_PIXELS:
                return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    except Exception as error:  # decoders raise anything at files that are damaged
        raise ValueError("This is no picture that can be read; give a whole PNG, JPEG, WebP or BMP file.") from error
    raise ValueError(f"The picture has {width} x {height} pixels, expected {MAX_PIXELS // 10**6} million at most.")
