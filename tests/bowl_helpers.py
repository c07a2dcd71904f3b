"""Clients whose losses are quadratic bowls of any shape."""

from dataclasses import dataclass, field, replace

import numpy as np

from fedunlearn.local import Results
from fedunlearn.testing.bench import LEAVER, five_clients


@dataclass
class Bowl:
    """``1/2 (w - c)' A (w - c)``."""

    a: np.ndarray
    c: np.ndarray

    def gradient(self, w):
        return (self.a @ (w.astype(np.float64) - self.c)).astype(np.float32)


@dataclass
class Bowls:
    """Clients with bowls of any shape."""

    bowls: dict
    sizes: dict
    silent: dict = field(default_factory=dict)
    calls: list = field(default_factory=list)

    @property
    def ids(self):
        return frozenset(self.bowls)

    def run(self, procedure, model, ids, *, round_index):
        self.calls.append(round_index)
        quiet = self.silent.get(len(self.calls), ())
        there = tuple(c for c in sorted(ids) if c not in quiet)
        nothing = np.zeros(len(there), np.int64)
        return Results(
            clients=there,
            values=np.stack([procedure.run(model, self.bowls[c]) for c in there]),
            num_examples=np.array([self.sizes[c] for c in there]),
            num_steps=nothing,
            num_samples=nothing,
        )


def bowls(signs=(1, 1, 1, 1)):
    rng = np.random.default_rng(7)
    found, sizes = {}, {0: 10, 2: 30, 5: 15}
    for client in sizes:
        basis, _ = np.linalg.qr(rng.normal(size=(4, 4)))
        a = basis @ np.diag([0.3, 1, 2, 3] * np.array(signs)) @ basis.T
        found[client] = Bowl(a, rng.normal(size=4))
    return Bowls(found, sizes)


def bowl_context(clients):
    quadratics = replace(five_clients()[1]((LEAVER,)))
    return replace(quadratics, clients=clients)


def joint(clients):
    """The dense Hessian, and the minimum, of the clients' mean loss."""
    n = {c: clients.sizes[c] / sum(clients.sizes.values()) for c in clients.sizes}
    h = sum(n[c] * clients.bowls[c].a for c in n)
    pull = sum(n[c] * clients.bowls[c].a @ clients.bowls[c].c for c in n)
    return h, np.linalg.solve(h, pull)
