"""The matrix products of a training step, read off the model itself."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from fedunlearn.task import LocalTask


@dataclass(frozen=True, slots=True)
class Gemm:
    """One product: ``(m, k) @ (k, n)``, or with an operand transposed."""

    m: int
    k: int
    n: int

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        return 2 * self.m * self.k * self.n


def step_gemms(task: "LocalTask", batch_size: int) -> list[Gemm]:
    """Return the products of one SGD step on a batch.

    Three a layer: the output, the gradient of the weight and that of the input, which
    the first layer does not need. A convolution counts as the product of its unfolded
    input (im2col), shape ``(batch * positions, channels * kernel)``, and its weight.
    """
    found: list[Gemm] = []
    for first, (rows, inputs, outputs) in _layers(task, batch_size):
        found.append(Gemm(rows, inputs, outputs))
        found.append(Gemm(outputs, rows, inputs))
        if not first:
            found.append(Gemm(rows, outputs, inputs))
    return found


def epoch_batches(num_examples: int, batch_size: int) -> list[int]:
    """Return the sizes of the batches of one pass over a client's data."""
    whole, rest = divmod(num_examples, batch_size)
    return [batch_size] * whole + ([rest] if rest else [])


def _layers(
    task: "LocalTask", batch_size: int
) -> Iterator[tuple[bool, tuple[int, int, int]]]:
    """Yield whether a layer is the first, and its rows, inputs and outputs."""
    module = task.new_module()
    sizes: list[tuple[int, int, int]] = []

    def note(layer: nn.Module, _: object, output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        outputs, inputs = weight.shape[0], prod(weight.shape[1:])
        sizes.append((output.numel() // outputs, inputs, outputs))

    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        module(torch.zeros(batch_size, *task.input_shape))
    for index, size in enumerate(sizes):
        yield index == 0, size
