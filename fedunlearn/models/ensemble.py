"""Several models of one kind that answer together, one a shard of the federation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from fedunlearn.models import ModelSpec

if TYPE_CHECKING:
    from torch import nn

Vote = Literal["mean", "majority"]
"""How members answer together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """S members; their parameters lie one after another in equal blocks.

    The initial values of the members are drawn from one stream, so they differ, and
    the first member begins where a single model would.

    Attributes:
        member: What each of them is.
        shards: How many, S.
        vote: ``mean`` of their probabilities, or the ``majority`` of their classes.
    """

    member: ModelSpec
    shards: int
    vote: Vote = "mean"

    def __post_init__(self) -> None:
        """Refuse an ensemble of one and a vote nobody knows."""
        if self.shards < 2:  # noqa: PLR2004 - one is its member
            raise ValueError(f"an ensemble has at least 2 members, got {self.shards}")
        if self.vote not in get_args(Vote):
            choices = " or ".join(get_args(Vote))
            raise ValueError(f"vote must be {choices}, got {self.vote!r}")

    def build(self, input_shape: tuple[int, ...], num_classes: int) -> "nn.Module":
        """Return the module; its scores are logarithms of probabilities."""
        from fedunlearn.models.modules import Ensemble as Module

        members = (
            self.member.build(input_shape, num_classes) for _ in range(self.shards)
        )
        return Module(members, majority=self.vote == "majority")
