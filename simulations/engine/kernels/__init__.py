"""Ways to train a cohort, all to the same numbers up to rounding.

One kernel serves a whole run: training, retraining and unlearning would differ by
rounding otherwise, and rounding grows (docs/performance.md).
"""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from fedunlearn.errors import ConfigError, UnknownNameError
from fedunlearn.task import LocalTask
from simulations.engine.kernels.batched import BatchedKernel
from simulations.engine.kernels.compiled import CompiledKernel, available, supports
from simulations.engine.kernels.fused import FusedKernel
from simulations.engine.kernels.kernel import Kernel
from simulations.engine.kernels.layers import Stack, stack_of
from simulations.engine.kernels.reference import ReferenceKernel
from simulations.engine.kernels.vmap import VmapKernel

SMALL = 10_000
"""Parameters up to which clients are stacked: larger ones stream from memory."""
AUTO, REFERENCE = "auto", "reference"
_DEVICES = ("cpu", "cuda")


def make_kernel(name: str, task: LocalTask, device: str = "cpu") -> Kernel:
    """Return a kernel for a task.

    Args:
        name: One of ``KERNELS``, or ``auto``.
        task: What is trained; in shards a member of its ensemble.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: If nobody knows the name, the device is not there, or the kernel
            cannot serve the task.
    """
    where = find_device(device)
    chosen = choose(task, where) if name == AUTO else name
    if chosen not in KERNELS:
        raise UnknownNameError.of("engine.kernel", name, (AUTO, *KERNELS))
    return KERNELS[chosen](task.member, where)


def choose(task: LocalTask, device: torch.device, *, compiled: bool = True) -> str:
    """Return the fastest kernel for a task, by its model and size alone.

    Timings have no say in it: the same scenario would give other bits on a busy day.

    Args:
        task: What is trained.
        device: Where.
        compiled: Whether the compiled kernel comes into question.
    """
    task = task.member
    served = device.type == "cpu" and available() and supports(task) is None
    if compiled and served:
        return "compiled"
    module, size = task.module(), task.layout.size
    stack, small = stack_of(module, task.layout), size <= SMALL
    on_cpu = device.type == "cpu"
    if stack is not None:
        return "batched" if not stack.convs and (small or not on_cpu) else "fused"
    return REFERENCE if on_cpu or _fault_of_vmap(module) else "vmap"


def _fused(task: LocalTask, device: torch.device) -> Kernel:
    return FusedKernel(_stack("fused", task), task.training, device)


def _batched(task: LocalTask, device: torch.device) -> Kernel:
    stack = _stack("batched", task)
    if stack.convs:
        raise ConfigError("engine.kernel=batched trains linear layers only")
    return BatchedKernel(stack, task.training, device)


def _vmap(task: LocalTask, device: torch.device) -> Kernel:
    if fault := _fault_of_vmap(task.module()):
        raise ConfigError(f"engine.kernel=vmap cannot train this model: {fault}")
    return VmapKernel(task, device)


def _reference(task: LocalTask, device: torch.device) -> Kernel:
    if device.type != "cpu":
        raise ConfigError("engine.kernel=reference works on engine.device=cpu only")
    return ReferenceKernel(task)


def _compiled(task: LocalTask, device: torch.device) -> Kernel:
    if device.type != "cpu":
        raise ConfigError("engine.kernel=compiled works on engine.device=cpu only")
    return CompiledKernel.of(task)


KERNELS: Mapping[str, Callable[[LocalTask, torch.device], Kernel]] = {
    REFERENCE: _reference,
    "compiled": _compiled,
    "fused": _fused,
    "batched": _batched,
    "vmap": _vmap,
}
"""Value of ``engine.kernel`` -> what makes it."""


def _stack(name: str, task: LocalTask) -> Stack:
    stack = stack_of(task.module(), task.layout)
    if stack is None:
        raise ConfigError(
            f"engine.kernel={name} trains plain stacks of convolutions and linear "
            f"layers with ReLU; {type(task.model).__name__} is none: use reference"
        )
    return stack


def _fault_of_vmap(module: nn.Module) -> str | None:
    """Return why clients of a module cannot be vectorised, or None."""
    if next(module.buffers(), None) is not None:
        return "it has buffers"
    for layer in module.modules():
        # Convolutions of stacked clients become grouped ones, whose rounding depends
        # on how many there are.
        if isinstance(layer, nn.modules.conv._ConvNd):
            return "it has a convolution"
        if isinstance(layer, nn.modules.dropout._DropoutNd):
            return "it draws random numbers"
    return None


def find_device(name: str) -> torch.device:
    """Return a device that is there.

    Raises:
        ConfigError: If it is not.
    """
    try:
        device = torch.device(name)
        if device.type not in _DEVICES:
            raise ConfigError(f"engine.device={name} is none of {', '.join(_DEVICES)}")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"engine.device={name} is not there: {reason}") from error
    return device


__all__ = [
    "AUTO",
    "KERNELS",
    "REFERENCE",
    "Kernel",
    "choose",
    "find_device",
    "make_kernel",
]
