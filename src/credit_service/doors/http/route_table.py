"""Finds the route of a request, before anything of it is decided: its scope, its limits and its handler."""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from re import Pattern
from typing import NamedTuple

from credit_service.doors.http.call import Handler
from credit_service.doors.http.problems import Problem


class Route(NamedTuple):
    """A route.

    `template` is its path with names for the variable parts. `scope` is the scope that a caller needs, None for public
    routes. `is_counted`: whether requests count against the rate limits. `stale_seconds`: how long a key that was valid
    stays valid while the store is away. `handler` is None for the pages of the documentation, which FastAPI serves.
    """

    template: str
    method: str
    pattern: Pattern[str]
    scope: str | None
    body_max_bytes: int
    handler: Handler | None = None
    is_counted: bool = True
    stale_seconds: float = 0


class RouteTable:
    """Finds routes by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._static: dict[tuple[str, str], Route] = {}
        # By method and number of slashes, or the patterns of all routes would be tried one after the other.
        self._dynamic: defaultdict[tuple[str, int], list[Route]] = defaultdict(list)
        self._mounted: list[Route] = []
        for route in routes:
            if not route.pattern.groups:
                self._static[route.method, route.template] = route
            elif route.handler is not None:
                self._dynamic[route.method, route.template.count("/")].append(route)
            else:
                self._mounted.append(route)

        self.find = lru_cache(10_000)(self._find)

    def _find(self, method: str, path: str) -> Route | None:
        """The route of a request, None if there is none for this method and path."""
        found = self._static.get((method, path))
        if found is not None:
            return found
        for route in self._dynamic.get((method, path.count("/")), ()):
            if route.pattern.fullmatch(path):
                return route
        return next(
            (route for route in self._mounted if route.method == method and route.pattern.fullmatch(path)), None
        )

    def template(self, path: str) -> str:
        """The template of a path, whatever the method; "none" if no route has this path."""
        return next((route.template for route in self._at(path)), "none")

    def missing(self, method: str, path: str) -> Problem:
        """The problem for a request without a route."""
        allowed = {route.method for route in self._at(path)}
        if not allowed:
            return Problem("not_found", f"No route has the path {path}.")
        names = ", ".join(sorted(allowed))
        detail = f"{method} is not allowed here; {names} is."
        return Problem("method_not_allowed", detail, headers={"Allow": names})

    def _at(self, path: str) -> list[Route]:
        static = [route for (_, known), route in self._static.items() if known == path]
        dynamic = [route for routes in (*self._dynamic.values(), self._mounted) for route in routes]
        return static or [route for route in dynamic if route.pattern.fullmatch(path)]
