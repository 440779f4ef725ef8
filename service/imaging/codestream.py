"""The size that a compressed frame itself declares, read before a decoder takes memory for it."""

_START_OF_JPEG2000 = b"\xff\x4f\xff\x51"
_START_OF_JPEG = b"\xff\xd8"
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "

# Start-of-frame markers: C0 to CF without DHT (C4), JPG (C8) and DAC (CC); F7 is JPEG-LS.
_FRAME_MARKERS = (set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}) | {0xF7}
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def declared_size(frame: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and samples per pixel of a JPEG, JPEG-LS or JPEG 2000 codestream; None if it is none of these.

    Raises:
        ValueError: it begins as one and breaks off before it says.
    """
    if frame.startswith(_JP2_SIGNATURE):
        start = frame.find(_START_OF_JPEG2000)
        if start == -1:
            raise ValueError("no codestream in the JP2 box")
        frame = frame[start:]
    if frame.startswith(_START_OF_JPEG2000):
        return _jpeg2000_size(frame)
    return _jpeg_size(frame) if frame.startswith(_START_OF_JPEG) else None


def _jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """From the SIZ segment: Xsiz, Ysiz, XOsiz, YOsiz of 4 bytes from byte 8, Csiz of 2 bytes at byte 40."""
    if len(frame) < 42:
        raise ValueError("SIZ segment cut short")
    x_size, y_size, x_offset, y_offset = (int.from_bytes(frame[at : at + 4], "big") for at in (8, 12, 16, 20))
    return y_size - y_offset, x_size - x_offset, int.from_bytes(frame[40:42], "big")


def _jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """From the frame header: marker 2, length 2, precision 1, rows 2, columns 2, components 1."""
    at = 2
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in _FRAME_MARKERS:
            rows, columns = frame[at + 5 : at + 7], frame[at + 7 : at + 9]
            return int.from_bytes(rows, "big"), int.from_bytes(columns, "big"), frame[at + 9]
        if marker == 0xFF:  # fill byte
            at += 1
        else:
            at += 2 if marker in _WITHOUT_LENGTH else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    raise ValueError("no frame header")
