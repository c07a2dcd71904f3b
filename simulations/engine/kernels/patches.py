"""The memory one convolution computes in.

A system takes large blocks back as soon as they are freed, and to touch new ones costs
as much as to compute what goes into them; so all steps use the same memory, and the
views of it that a batch needs are made once for every size of batch.
"""

from dataclasses import dataclass
from math import prod
from typing import final

import torch

from simulations.engine.kernels.layers import Conv

Fold = tuple[torch.Tensor, tuple[tuple[torch.Tensor, torch.Tensor], ...]]
"""A tensor, and views of it with what is added to them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Views of a layer's memory for batches of N examples.

    Patches are ``size`` high and wide, and there are ``high * wide`` in an image. A
    block of sums belongs to one member of all pooling windows, from left to right and
    from top to bottom; without pooling there is one block.

    Attributes:
        padded: The input with zeros around it.
        inner: The input in it, shape ``(inputs, height, width, N)``.
        windows: The patches in it, shape ``(inputs, size, size, high, wide, N)``.
        patches: Memory for their copies, in their shape.
        patch_rows: The same, shape ``(inputs * size * size, high * wide * N)``.
        sums: Before bias and pooling, shape ``(blocks, outputs, high, wide, N)``.
        sum_rows: The same, shape ``(blocks * outputs, high * wide * N)``.
        sum_sides: Of the sums the left and the right members of pooling windows, in the
            shape of ``pairs``.
        pairs: The larger ones of the upper and of the lower two members of pooling
            windows, shape ``(2, outputs, high, wide, N)``.
        out: What is passed on, shape ``(outputs, high, wide, N)``; without pooling the
            memory of ``sums``.
        slopes: The loss's slope at the sums, in their shape.
        slope_rows: The same in the shape of ``sum_rows``.
        slope_sides: The same as ``sum_sides``.
        tap_rows: The loss's slope at the patches, in the shape of ``patch_rows``.
        columns: Sums over the columns of patches.
        rows: Sums of those over the rows: the loss's slope at the padded input.
        below: The loss's slope at the input, shape ``(inputs, height, width, N)``.
    """

    padded: torch.Tensor
    inner: torch.Tensor
    windows: torch.Tensor
    patches: torch.Tensor
    patch_rows: torch.Tensor
    sums: torch.Tensor
    sum_rows: torch.Tensor
    sum_sides: tuple[torch.Tensor, torch.Tensor]
    pairs: torch.Tensor
    out: torch.Tensor
    slopes: torch.Tensor
    slope_rows: torch.Tensor
    slope_sides: tuple[torch.Tensor, torch.Tensor]
    tap_rows: torch.Tensor
    columns: Fold
    rows: Fold
    below: torch.Tensor


@final
class Filters:
    """A filter at each of its places in a patch, zeros around it.

    Args:
        layer: Whose filter.
        like: A tensor of the precision and the device of all.

    Attributes:
        rows: Shape ``(blocks * outputs, inputs * size * size)``.
        places: Views of it, one for each block, shape ``(outputs, inputs, kernel,
            kernel)`` each.
    """

    def __init__(self, layer: Conv, like: torch.Tensor) -> None:
        step, size, kernel = layer.step, layer.size, layer.kernel
        shape = (step, step, layer.outputs, layer.inputs, size, size)
        whole = like.new_zeros(shape)
        self.rows = whole.view(step * step * layer.outputs, -1)
        self.places = [
            whole[i, j, :, :, i : i + kernel, j : j + kernel]
            for i in range(step)
            for j in range(step)
        ]


@final
class Memory:
    """The memory of one layer.

    Args:
        layer: Its shape.
        like: A tensor of the precision and the device of all.

    Attributes:
        weight: The weights as filters.
        gradient: The same for their gradients.
    """

    def __init__(self, layer: Conv, like: torch.Tensor) -> None:
        self.weight, self.gradient = Filters(layer, like), Filters(layer, like)
        self._layer, self._like = layer, like
        self._blocks: dict[str, torch.Tensor] = {}
        self._views: dict[torch.Size, Views] = {}

    def views(self, shape: torch.Size) -> Views:
        """Return what a batch computes in, with anything in it.

        Args:
            shape: The input's, ``(inputs, height, width, N)``.
        """
        if shape not in self._views:
            self._views[shape] = self._made(*shape)
        return self._views[shape]

    def _made(self, inputs: int, height: int, width: int, examples: int) -> Views:
        layer, p = self._layer, self._layer.padding
        size, step, outputs = layer.size, layer.step, layer.outputs
        around = (inputs, height + 2 * p, width + 2 * p, examples)
        # What pooling leaves over, an odd last row or column, is in no patch.
        high, wide = ((side - size) // step + 1 for side in around[1:3])
        inner = (slice(None), slice(p, p + height), slice(p, p + width))
        patches = self._take("patches", inputs, size, size, high, wide, examples)
        sums = self._take("sums", step * step, outputs, high, wide, examples)
        slopes = self._take("slopes", *sums.shape)
        taps = self._take("taps", *patches.shape)
        padded = self._take("padded", *around)
        # First the columns, then the rows: 2 * size sums and not size * size.
        partial = self._take("columns", inputs, size, high, around[2], examples)
        total = self._take("rows", *padded.shape)
        a, b, c, d = padded.stride()
        return Views(
            padded=padded,
            inner=padded[inner],
            windows=padded.as_strided(patches.shape, (a, b, c, step * b, step * c, d)),
            patches=patches,
            patch_rows=patches.view(inputs * size * size, -1),
            sums=sums,
            sum_rows=sums.view(step * step * outputs, -1),
            sum_sides=(sums[::2], sums[1::2]),
            pairs=self._take("pairs", *sums[:2].shape),
            out=self._take("out", *sums[0].shape) if layer.pool else sums[0],
            slopes=slopes,
            slope_rows=slopes.view(step * step * outputs, -1),
            slope_sides=(slopes[::2], slopes[1::2]),
            tap_rows=taps.view(inputs * size * size, -1),
            columns=_fold_of(partial, taps.unbind(2), 3, step),
            rows=_fold_of(total, partial.unbind(1), 1, step),
            below=total[inner],
        )

    def _take(self, name: str, *shape: int) -> torch.Tensor:
        """Return memory; the largest shape of a name decides how much is kept."""
        size, block = prod(shape), self._blocks.get(name)
        if block is None or block.numel() < size:
            block = self._blocks[name] = self._like.new_empty(size)
        return block[:size].view(shape)


def _fold_of(
    total: torch.Tensor, parts: tuple[torch.Tensor, ...], axis: int, step: int
) -> Fold:
    """Let the i-th part be added from place i on, to every ``step``-th place."""
    count, before = parts[0].shape[axis], (slice(None),) * axis
    places = (
        total[(*before, slice(i, i + step * count, step))] for i in range(len(parts))
    )
    return total, tuple(zip(places, parts, strict=True))
