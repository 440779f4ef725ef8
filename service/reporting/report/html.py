"""The report as one HTML page that needs nothing else: pictures inside, no script, no other host."""

from base64 import b64encode
from functools import lru_cache
from importlib.resources import files

from jinja2 import Environment, StrictUndefined, Template

from service.reporting.report.content import Picture, Report


def render_html(report: Report) -> str:
    """The page; every value is escaped. Equal reports make equal pages."""
    return _template().render(report=report)


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_uri"] = _data_uri
    return environment.from_string(files(__package__).joinpath("report.html.jinja").read_text(encoding="utf-8"))


def _data_uri(picture: Picture) -> str:
    return f"data:image/jpeg;base64,{b64encode(picture.jpeg).decode()}"
