"""Rounds written by hand, and a context in which some clients of them leave."""

import numpy as np

from fedunlearn.history import ArraysInMemory, InMemoryHistory, RoundRecord
from fedunlearn.params import Layout
from fedunlearn.schedule import TrainingSchedule
from fedunlearn.testing import QuadraticClients, make_context


def record(index, updates, sizes=None, broadcast=(0.0, 0.0)):
    """A round of ``updates`` by client; who has no size has one example."""
    ids = tuple(sorted(updates))
    nothing = np.zeros(len(ids), np.int64)
    return RoundRecord(
        index=index,
        clients=ids,
        num_examples=np.array([(sizes or {}).get(c, 1) for c in ids], np.int64),
        num_steps=nothing,
        num_samples=nothing,
        asked=ids,
        arrays=ArraysInMemory(
            np.array(broadcast, np.float32),
            np.array([updates[c] for c in ids], np.float32),
        ),
    )


def context(rounds, forget, clients=3, rng_seed=0):
    """What a method may look at if ``forget`` leave after these rounds."""
    size = len(rounds[0].broadcast) if rounds else 2
    history = InMemoryHistory(Layout(("w",), ((size,),)))
    for one in rounds:
        history.append_round(one)
    schedule = TrainingSchedule(seed=0, rounds=len(rounds), epochs=1)
    centres = tuple(np.zeros(size, np.float32) for _ in range(clients))
    staying = QuadraticClients(centres=centres, schedule=schedule)
    return make_context(history, staying.without(forget), rng_seed=rng_seed)
