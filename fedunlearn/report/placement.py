"""Puts labels beside points so that they cover neither each other nor the points."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_RADII = (6.0, 14.0, 24.0, 36.0, 50.0, 66.0, 84.0, 104.0, 128.0, 156.0, 190.0)
_NOTHING = 1e-6
_ANGLES = (0, 35, -35, 180, 145, -145, 90, -90, 60, -60, 120, -120)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, ``left < right`` and ``bottom < top``, in points."""

    left: float
    bottom: float
    right: float
    top: float

    @classmethod
    def around(cls, centre: Point, width: float, height: float) -> "Box":
        """Return the box with this centre."""
        (x, y), dx, dy = centre, width / 2, height / 2
        return cls(x - dx, y - dy, x + dx, y + dy)

    @property
    def centre(self) -> Point:
        """Its middle."""
        return (self.left + self.right) / 2, (self.bottom + self.top) / 2

    def overlap(self, other: "Box") -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, frame: "Box") -> float:
        """Return the part of its area that lies outside ``frame``."""
        area = (self.right - self.left) * (self.top - self.bottom)
        return area - self.overlap(frame)

    def nearest(self, point: Point) -> Point:
        """Return the place in the box that is nearest to ``point``."""
        x, y = point
        return (
            min(max(x, self.left), self.right),
            min(max(y, self.bottom), self.top),
        )


def place(
    points: Sequence[Point],
    sizes: Sequence[Point],
    frame: Box,
    obstacles: Sequence[Box],
) -> list[Box]:
    """Return a box for each label, greedily and in order: the nearest free place.

    Args:
        points: What is labelled.
        sizes: Width and height of each label.
        frame: Where labels may stand.
        obstacles: What they should leave free, the points' own marks included.
    """
    placed: list[Box] = []
    taken = list(obstacles)
    for point, size in zip(points, sizes, strict=True):
        box = _best(point, size, frame, taken, placed)
        placed.append(box)
        taken += [box, *_leader(point, box)]
    return placed


def _best(
    point: Point,
    size: Point,
    frame: Box,
    taken: Sequence[Box],
    labels: Sequence[Box],
) -> Box:
    """Return the nearest candidate that covers least, with its leader line."""
    best, least = Box.around(point, *size), math.inf
    for box in _candidates(point, size):
        harm = 2 * box.outside(frame) + sum(box.overlap(other) for other in taken)
        line = _leader(point, box)
        harm += sum(part.overlap(other) for part in line for other in labels)
        if harm < least - _NOTHING:
            best, least = box, harm
        if least <= _NOTHING:
            break
    return best


def _leader(point: Point, box: Box) -> list[Box]:
    """Return small boxes along the line from the point to its label."""
    (x, y), (u, v) = point, box.nearest(point)
    count = int(math.dist((x, y), (u, v)) // 6)
    steps = [k / (count + 1) for k in range(1, count + 1)]
    return [Box.around((x + k * (u - x), y + k * (v - y)), 3, 3) for k in steps]


def _candidates(point: Point, size: Point) -> Iterator[Box]:
    (x, y), (width, height) = point, size
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            centre = x + dx * (radius + width / 2), y + dy * (radius + height / 2)
            yield Box.around(centre, width, height)
