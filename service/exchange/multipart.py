"""multipart/related (RFC 2387) as DICOMweb uses it, taken apart while it arrives.

A part is handed on in pieces as they come, so that a study never lies in memory.
"""

from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

RELATED = b"multipart/related"
DICOM_TYPE = "application/dicom"


class MultipartError(Exception):
    """The body is not multipart/related, or not well formed; the text is safe to show."""


class PartSink(Protocol):
    """What takes the parts, one after the other."""

    def begin(self) -> None:
        """A part begins."""

    def data(self, piece: bytes) -> None:
        """The next bytes of the part."""

    def end(self) -> None:
        """The part is complete."""


class RelatedParts:
    """A body of the given Content-Type, fed piece by piece into a sink.

    Raises:
        MultipartError: the Content-Type is another, or has no boundary.
    """

    def __init__(self, content_type: str | None, sink: PartSink) -> None:
        kind, options = parse_options_header(content_type)
        if kind != RELATED or options.get(b"type", DICOM_TYPE.encode()).lower() != DICOM_TYPE.encode():
            raise MultipartError('it is not multipart/related; type="application/dicom"')
        self._sink = sink
        self._complete = False
        try:
            self._parser = MultipartParser(
                options.get(b"boundary") or b"",
                {
                    "on_part_begin": sink.begin,
                    "on_part_data": lambda data, start, end: sink.data(data[start:end]),
                    "on_part_end": sink.end,
                    "on_end": self._on_end,
                },
            )
        except FormParserError as error:
            raise MultipartError("its boundary is not valid") from error
        if not options.get(b"boundary"):
            raise MultipartError("it has no boundary")

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the body; whatever the sink raises comes through.

        Raises:
            MultipartError: they do not follow the form.
        """
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MultipartError("it is malformed") from error

    def finish(self) -> None:
        """The body has ended.

        Raises:
            MultipartError: before its closing boundary.
        """
        if not self._complete:
            raise MultipartError("it ends before its closing boundary")

    def _on_end(self) -> None:
        self._complete = True
