"""Stored files over HTTP: whole, or the part that a Range header asks for."""

import re
from collections.abc import Mapping
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import FileResponse, StreamingResponse

from service.storage import StoredFile

_ONE_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def file_response(
    request: Request,
    file: StoredFile,
    *,
    media_type: str,
    headers: Mapping[str, str] | None = None,
    filename: str | None = None,
    inline: bool = False,
) -> Response:
    """The file as an answer: from the local disk, or passed on from the bucket while it comes."""
    disposition = "inline" if inline else "attachment"
    if file.path is not None:
        return FileResponse(
            file.path,
            media_type=media_type,
            headers=headers,
            filename=filename,
            content_disposition_type=disposition,
        )
    sent = {"Accept-Ranges": "bytes", **(headers or {})}
    if filename is not None:
        sent["Content-Disposition"] = f"{disposition}; filename*=utf-8''{quote(filename)}"
    start, stop = 0, file.size
    status = 200
    if (wanted := _wanted_range(request, file.size, sent.get("ETag"))) is not None:
        start, stop = wanted
        if start >= stop:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{file.size}"})
        status = 206
        sent["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    sent["Content-Length"] = str(stop - start)
    return StreamingResponse(file.chunks(start, stop), status_code=status, media_type=media_type, headers=sent)


def _wanted_range(request: Request, size: int, etag: str | None) -> tuple[int, int] | None:
    """First byte and the byte after the last; None for the whole file, which also answers several ranges at once."""
    found = _ONE_RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or not any(found.groups()):
        return None
    if (condition := request.headers.get("if-range")) is not None and condition != etag:
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size
