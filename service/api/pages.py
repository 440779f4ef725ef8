"""What people read in a browser: the page, and the explanation of each kind of problem."""

import re
from html import escape
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.exceptions import HTTPException

from service.api.problems import problem_kinds

WEB_FOLDER = Path(__file__).parent.parent / "web"
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}
# The bundler names a chunk by its content, so a browser may keep it for good.
_NAMED_BY_CONTENT = re.compile(r".+-[A-Z0-9]{8}\.js")

router = APIRouter(include_in_schema=False)


def page_folder() -> Path:
    """The page that `make web` has built; the plain one where it has not."""
    built = WEB_FOLDER / "built"
    return built if (built / "index.html").is_file() else WEB_FOLDER / "plain"


@router.get("/")
def get_page() -> Response:
    """The page: upload studies, watch the jobs, look at what was found."""
    return FileResponse(page_folder() / "index.html", media_type="text/html", headers={"Cache-Control": "no-cache"})


@router.get("/web/{name}")
def get_web_file(name: str, accept_encoding: Annotated[str, Header()] = "") -> Response:
    """Script, style and icon of the page; compressed for whoever takes it so."""
    files = {path.name: path for path in page_folder().iterdir()}
    media_type = MEDIA_TYPES.get(Path(name).suffix)
    if media_type is None or name not in files:
        raise HTTPException(404)
    forever = _NAMED_BY_CONTENT.fullmatch(name) is not None
    headers = {
        "Cache-Control": "public, max-age=31536000, immutable" if forever else "no-cache",
        "Vary": "Accept-Encoding",
    }
    compressed = files.get(f"{name}.gz")
    if compressed is not None and "gzip" in accept_encoding:
        return FileResponse(compressed, media_type=media_type, headers={**headers, "Content-Encoding": "gzip"})
    return FileResponse(files[name], media_type=media_type, headers=headers)


@router.get("/problems/{code}")
def get_problem(code: Annotated[str, PathParameter(max_length=100)]) -> HTMLResponse:
    """What a problem's `type` refers to."""
    kind = problem_kinds().get(code)
    if kind is None:
        raise HTTPException(404)
    paragraphs = "".join(f"<p>{escape(paragraph)}</p>" for paragraph in kind.explanation.split("\n\n"))
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(kind.title)}</title>'
        f'<link rel="stylesheet" href="/web/app.css"><main><h1>{escape(kind.title)}</h1>{paragraphs}'
        f"<p>Problem type <code>{escape(kind.reference)}</code>, HTTP status {kind.status}.</p></main></html>"
    )
