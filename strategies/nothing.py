"""Doing nothing: the negative control.

A comparison in which this row looks good has no power to tell forgetting from not
forgetting.
"""

from dataclasses import dataclass
from typing import ClassVar

from fedunlearn.method import ALL_LEVELS, About, Requires, UnlearningContext
from fedunlearn.params import Vector


@dataclass(frozen=True, slots=True, kw_only=True)
class Nothing:
    """Returns the trained model."""

    about: ClassVar[About] = About(
        family="control",
        cost="0",
        source="the control that every test must refute",
    )
    requires: ClassVar[Requires] = Requires(levels=ALL_LEVELS)

    def unlearn(self, model: Vector, ctx: UnlearningContext) -> Vector:
        """Return a copy of ``model``."""
        del ctx
        return model.copy()
