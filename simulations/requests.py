"""Who is to be forgotten, and when: from a scenario's names to ids."""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from fedunlearn.data import ClientData, Federation
from fedunlearn.data.divide import Divided
from fedunlearn.errors import ConfigError, RequestError
from fedunlearn.history import ClientId
from fedunlearn.method import UnlearningRequest
from fedunlearn.rng import derive
from simulations.scenario import Outline, Scenario
from simulations.sequence import Removal


def with_returns(
    federation: Federation, outline: Outline
) -> tuple[Federation, dict[ClientId, int]]:
    """Add those who come back, each a new client with a leaver's data."""
    joins, added = dict[ClientId, int](), list[ClientData]()
    for name, first in outline.returns.items():
        if not 1 < first <= outline.rounds:
            raise ConfigError(
                f"returns.{name} must be a round from 2 to {outline.rounds}, "
                f"got {first}"
            )
        data = federation.clients[federation.client_id(name)]
        joins[len(federation.clients) + len(added)] = first
        added.append(replace(data, name=f"{data.name} again"))
    return replace(federation, clients=(*federation.clients, *added)), joins


def requests_of(
    federation: Federation, scenario: Scenario
) -> list[tuple[UnlearningRequest, int]]:
    """Return every request and the last round before it, by time."""
    total = scenario.outline.rounds
    if not scenario.requests:
        return [(_request(federation, scenario.outline), total)]
    found = []
    for asked in scenario.requests:
        leavers = frozenset(federation.client_id(c) for c in asked.forget)
        found.append((UnlearningRequest(clients=leavers), asked.after_round or total))
    named = [client for request, _ in found for client in sorted(request.clients)]
    if twice := [client for client in named if named.count(client) > 1]:
        raise RequestError(f"client {twice[0]} leaves in two requests")
    return found


def joint(requests: Sequence[UnlearningRequest]) -> UnlearningRequest:
    """Return the request that asks for all of them at once."""
    if len(requests) == 1:
        return requests[0]
    everybody = frozenset(client for r in requests for client in r.clients)
    return UnlearningRequest(clients=everybody)


def removals_of(
    requests: Sequence[tuple[UnlearningRequest, int]], divided: Divided
) -> tuple[Removal, ...]:
    """Return the requests with everybody who is gone by each."""
    if len(requests) == 1:  # only then somebody may be left with nothing
        ((request, after),) = requests
        return (Removal(request, request.clients | divided.gone, after),)
    return tuple(Removal(r, r.clients, after) for r, after in requests)


def _request(federation: Federation, outline: Outline) -> UnlearningRequest:
    """Return who and what is to be forgotten."""
    rows = {}
    for name, share in outline.forget_samples.items():
        client = federation.client_id(name)
        size = len(federation.clients[client].y)
        order = derive(outline.data_seed, "forgotten samples", client).permutation(size)
        rows[client] = tuple(sorted(order[: ceil(share * size)].tolist()))
    known = range(federation.num_classes)
    if others := [k for k in outline.forget_classes if k not in known]:
        raise ConfigError(
            f"forget_classes: {others[0]} is not one of {len(known)} classes"
        )
    return UnlearningRequest(
        clients=frozenset(federation.client_id(c) for c in outline.forget),
        samples=rows,
        classes=frozenset(outline.forget_classes),
    )
