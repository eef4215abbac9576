"""Which route a request is for, before anything of it is decided: its scope, its limits and its hot handlers.

Built from FastAPI's own routes. FastAPI finds the route again by itself; this table only answers what admission and the
shell must know before.
"""

from collections.abc import Iterable, Mapping, Sequence
from re import Pattern
from typing import NamedTuple

from credit_service.doors.http.call import HotHandler
from credit_service.doors.http.problems import Problem


class Route(NamedTuple):
    """A route.

    `template` is its path with names for the variable parts. `scope` is the scope that a caller needs, None for public
    routes. `is_counted`: whether requests count against the rate limits. `stale_seconds`: how long a key that was valid
    stays valid while the store is away. `hot`: handlers that answer before FastAPI, by media type; of GET by b"".
    """

    template: str
    methods: frozenset[str]
    pattern: Pattern[str]
    scope: str | None
    body_max_bytes: int
    is_counted: bool = True
    stale_seconds: float = 0
    hot: Mapping[bytes, HotHandler] = {}

    @property
    def is_static(self) -> bool:
        """Whether its path has no variable parts."""
        return not self.pattern.groups


class RouteTable:
    """Finds routes by method and path."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._static: dict[tuple[str, str], Route] = {}
        dynamic: list[Route] = []
        for route in routes:
            if route.is_static:
                self._static |= {(method, route.template): route for method in route.methods}
            else:
                dynamic.append(route)
        # Hot routes are asked for most, so they are compared first.
        self._dynamic: Sequence[Route] = sorted(dynamic, key=lambda route: not route.hot)

    def find(self, method: str, path: str) -> Route | None:
        """The route of a request, None if there is none for this method and path."""
        found = self._static.get((method, path))
        if found is not None:
            return found
        for route in self._dynamic:
            if method in route.methods and route.pattern.fullmatch(path):
                return route
        return None

    def template(self, path: str) -> str:
        """The template of a path, whatever the method; "none" if no route has this path."""
        return next((route.template for route in self._at(path)), "none")

    def missing(self, method: str, path: str) -> Problem:
        """The problem for a request without a route."""
        allowed = {known for route in self._at(path) for known in route.methods}
        if not allowed:
            return Problem("not_found", f"There is nothing at {path}.")
        names = ", ".join(sorted(allowed))
        detail = f"{method} is not allowed here; {names} is."
        return Problem("method_not_allowed", detail, headers={"Allow": names})

    def _at(self, path: str) -> Sequence[Route]:
        static = [route for (_, known), route in self._static.items() if known == path]
        return static or [route for route in self._dynamic if route.pattern.fullmatch(path)]
