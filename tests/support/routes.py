"""The routes of an application."""

from fastapi import FastAPI
from fastapi.routing import iter_route_contexts


def routes_of(app: FastAPI) -> list[tuple[str, set[str]]]:
    """Path and methods of each route, also of those that are in no document."""
    return [
        (str(route.path), set(route.methods or ()))
        for route in iter_route_contexts(app.routes)
        if route.path is not None
    ]
