"""Sizes worked out by hand from the markers of the standards."""

import pytest

from service.imaging.codestream import declared_size

JPEG2000 = (
    b"\xff\x4f\xff\x51\x00\x29\x00\x00"
    + b"".join(n.to_bytes(4, "big") for n in (520, 310, 8, 10, 520, 310, 0, 0))
    + b"\x00\x01\x0b\x01\x01"
)
JPEG_FRAME = b"\x00\x0b\x10\x00\x40\x01\x00\x01\x01\x11\x00"  # length 11, 16 bits, 64 rows, 256 columns, 1 component


@pytest.mark.parametrize(
    ("frame", "size"),
    [
        (JPEG2000, (300, 512, 1)),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n" + JPEG2000, (300, 512, 1)),
        (b"\xff\xd8\xff\xc3" + JPEG_FRAME, (64, 256, 1)),
        (b"\xff\xd8\xff\xf7" + JPEG_FRAME, (64, 256, 1)),
        (b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xff\xc0" + JPEG_FRAME, (64, 256, 1)),  # a segment and fill bytes before
        (b"\x01\x00\x00\x00 RLE", None),
    ],
)
def test_declared_size(frame, size):
    assert declared_size(frame) == size


@pytest.mark.parametrize("frame", [JPEG2000[:30], b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x04ab", b"\x00\x00\x00\x0cjP  "])
def test_a_broken_off_codestream(frame):
    with pytest.raises(ValueError, match=r"short|no frame header|no codestream"):
        declared_size(frame)
