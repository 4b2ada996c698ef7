"""BillForward's endpoints: which path does what, and what each may be asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from sandbox import billing, reading, recalculation
from sandbox.reading import PAGE_QUERY, Page
from sandbox.rules import body_of, query_of
from sandbox.wire import Json, Ready, RefusedError, Request, invalid
from sandbox.world import NotFoundError, World

ENTITY_QUERY = (*PAGE_QUERY, "exclude_children")
PLANS_QUERY = (*PAGE_QUERY, "metadata")
Get = Callable[[World, str, Mapping[str, str]], Page]
Post = Callable[[World, str, Json], Sequence[Json | Ready]]


@dataclass(frozen=True, slots=True)
class Route:
    """One endpoint; `*` in the path stands for an id."""

    method: str
    path: tuple[str, ...]
    answer: Callable[[World, str, Request], Page]


def answer(world: World, path: str, request: Request) -> Page:
    """Carry out *request*, whose path below the base is *path*; RefusedError if it is refused."""
    segments = tuple(path.strip("/").split("/"))
    found = [route for route in ROUTES if _matches(route.path, segments)]
    if not found:
        raise RefusedError(404, "NotImplemented", f"there is no {request.method} {path}")
    for route in found:
        if route.method == request.method:
            entity_id = next(
                (unquote(s) for s, p in zip(segments, route.path, strict=True) if p == "*"), ""
            )
            return _answered(world, route, entity_id, request)
    raise RefusedError(405, "NotImplemented", f"{path} does not take {request.method}")


def _answered(world: World, route: Route, entity_id: str, request: Request) -> Page:
    try:
        return route.answer(world, entity_id, request)
    except NotFoundError as error:
        if world.settings.unknown_id_is_empty:
            return Page(results=[])
        raise RefusedError(404, "NoSuchEntity", str(error), violation=False) from error


def _matches(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    return len(pattern) == len(segments) and all(
        wanted in ("*", given) for wanted, given in zip(pattern, segments, strict=True)
    )


def _get(path: str, get: Get, query: Sequence[str]) -> Route:
    def read(world: World, entity_id: str, request: Request) -> Page:
        if request.body:
            raise invalid("a GET carries no body")
        return get(world, entity_id, query_of(request, query))

    return Route("GET", tuple(path.split("/")), read)


def _post(path: str, post: Post) -> Route:
    def write(world: World, entity_id: str, request: Request) -> Page:
        query_of(request, ())
        return Page(results=post(world, entity_id, body_of(request)))

    return Route("POST", tuple(path.split("/")), write)


# A literal path comes before one with an id in the same place.
ROUTES = (
    _get("invoices/*", reading.invoice, ENTITY_QUERY),
    _get("invoices/state/*", reading.invoices_in_state, ENTITY_QUERY),
    _get("invoices/*/charges", reading.charges, (*PAGE_QUERY, "state", "type")),
    _post("invoices/*/recalculate", recalculation.recalculate_invoice),
    _post("charges/recalculate", lambda w, _, body: recalculation.recalculate_batch(w, body)),
    _get("charges/*", reading.charge, PAGE_QUERY),
    _post("charges/*/recalculate", recalculation.recalculate_charge),
    _get("subscriptions/*", reading.subscription, PAGE_QUERY),
    _post("subscriptions/*/advance", lambda w, one, body: [billing.advance(w, one, body)]),
    _get("accounts/*", reading.account, PAGE_QUERY),
    _get("product-rate-plans", lambda w, _, query: reading.plans(w, query), PLANS_QUERY),
    _get("product-rate-plans/*", reading.plan, PAGE_QUERY),
    _get("notifications/ack/*", reading.acknowledge, ("organizations",)),
    _get("webhooks", lambda w, _, query: reading.webhooks(w, query), PAGE_QUERY),
)
"""Every endpoint of the sandbox."""
