"""Closed-form federations and the laws every unlearning method obeys; NumPy only."""

from fedunlearn.testing.clients import QuadraticClients, TrainCall
from fedunlearn.testing.federation import make_context, quadratic_federation
from fedunlearn.testing.laws import (
    LAWS,
    check_method,
    keeps_a_model_the_leaver_never_touched,
)

__all__ = [
    "LAWS",
    "QuadraticClients",
    "TrainCall",
    "check_method",
    "keeps_a_model_the_leaver_never_touched",
    "make_context",
    "quadratic_federation",
]
