"""Whole clients in C++: one call trains every client of a part of a cohort.

Optional: it is there if a compiler was at hand when the package was installed.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from fedunlearn.cohort import Cohort, Indices
from fedunlearn.errors import ConfigError
from fedunlearn.params import Matrix
from fedunlearn.task import LocalTask
from fedunlearn.training import Training
from simulations.engine.kernels.layers import Conv, Linear, Stack, stack_of
from simulations.engine.kernels.native import MOST_LAYERS, usable
from simulations.engine.kernels.native.call import train_cohort


@dataclass(frozen=True, slots=True, eq=False)
class CompiledKernel:
    """Plain stacks of layers; the step is part of the weights' gradient.

    One client's weights stay in the processor's cache for all its steps, and no
    gradient of a linear layer is ever stored.

    Attributes:
        shape: The model in numbers, see ``native/model.hpp``.
        training: How it is trained.
        instructions: Instruction set, one of ``native.usable()``.
    """

    shape: Indices
    training: Training
    instructions: str
    parallel: ClassVar[bool] = True
    stacks: ClassVar[bool] = False
    independent: ClassVar[bool] = True

    @classmethod
    def of(cls, task: LocalTask, instructions: str | None = None) -> "CompiledKernel":
        """Return the kernel for a task.

        Args:
            task: What is trained.
            instructions: Instruction set; None takes the fastest.

        Raises:
            ConfigError: If the model is not served or no such library was built.
        """
        stack = stack_of(task.module(), task.layout)
        reason = _fault(stack, task)
        if stack is None or reason is not None:
            raise ConfigError(f"engine.kernel=compiled cannot train this: {reason}")
        chosen = _chosen(instructions)
        return cls(_numbers(stack, task.input_shape), task.training, chosen)

    @property
    def name(self) -> str:
        """What is logged, such as ``compiled(avx512)``."""
        return f"compiled({self.instructions})"

    def train(self, cohort: Cohort, out: Matrix) -> npt.NDArray[np.float64]:
        """Train every client; see :class:`Kernel`.

        Raises:
            DataError: If a client's data do not fit the model.
            RunError: If memory is short.
        """
        return train_cohort(self.instructions, self.shape, self.training, cohort, out)


def supports(task: LocalTask) -> str | None:
    """Return why the kernel cannot train a task's model, or None if it can."""
    return _fault(stack_of(task.module(), task.layout), task)


def available() -> str | None:
    """Return the instruction set in use, or None if the kernel was not built."""
    return next(iter(usable()), None)


def _chosen(instructions: str | None) -> str:
    names = usable()
    if not names:
        raise ConfigError(
            "engine.kernel=compiled was not built: install fedunlearn again where "
            "there is a C++ compiler, or use another kernel"
        )
    if instructions is not None and instructions not in names:
        raise ConfigError(
            f"engine.kernel=compiled has no {instructions} here, only "
            f"{', '.join(names)}"
        )
    return names[0] if instructions is None else instructions


def _fault(stack: Stack | None, task: LocalTask) -> str | None:
    if stack is None:
        return (
            "it trains plain stacks of convolutions and linear layers with ReLU and "
            f"2x2 max pooling; {type(task.model).__name__} is none"
        )
    if max(len(stack.convs), len(stack.linears)) > MOST_LAYERS:
        return f"it trains at most {MOST_LAYERS} layers of a kind"
    layers: list[Conv | Linear] = [*stack.convs, *stack.linears]
    ends = [0, *(s.stop for layer in layers for s in (layer.weight, layer.bias))]
    begins = [s.start for layer in layers for s in (layer.weight, layer.bias)]
    if begins != ends[:-1] or ends[-1] != task.layout.size:
        return "its layers do not lie in the model's vector one after another"
    return None


def _numbers(stack: Stack, input_shape: tuple[int, ...]) -> Indices:
    """Return the model as ``Shape`` of ``native/model.hpp`` reads it."""
    image = input_shape if stack.convs else (prod(input_shape), 1, 1)
    numbers = [*image, len(stack.convs), len(stack.linears)]
    for conv in stack.convs:
        numbers += [conv.outputs, conv.kernel, conv.padding, conv.relu, conv.pool]
    for linear in stack.linears:
        numbers += [linear.outputs, linear.relu]
    return np.array(numbers, np.int64)
