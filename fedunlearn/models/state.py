"""Between a torch module and a flat vector, without any global random state."""

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from fedunlearn.params import Array, Layout, Vector
from fedunlearn.rng import derive

if TYPE_CHECKING:
    from collections.abc import Mapping


def arrays_of(module: nn.Module) -> dict[str, Array]:
    """Return the module's state as NumPy views, names as in ``state_dict``."""
    return {name: t.detach().numpy() for name, t in module.state_dict().items()}


def load(module: nn.Module, layout: Layout, vector: Vector) -> None:
    """Copy ``vector``, shape ``(P,)``, into the module's floating-point state."""
    source = layout.unflatten(vector)
    load_arrays(module, source)


def load_arrays(module: nn.Module, arrays: "Mapping[str, Array]") -> None:
    """Copy arrays into the module's state of the same names.

    A copy into memory that torch allocated, never a view: kernels may round in another
    way on data that is aligned in another way.
    """
    state = module.state_dict()
    for name, array in arrays.items():
        np.copyto(state[name].detach().numpy(), array)


def initial_vector(module: nn.Module, layout: Layout, seed: int) -> Vector:
    """Return initial parameters drawn from the seed alone, shape ``(P,)``.

    Weights and biases of linear and convolutional layers are uniform in
    ``+-1/sqrt(fan_in)``, which is torch's own default; all else keeps the value the
    constructor gave it.
    """
    arrays = dict(arrays_of(module))
    rng = derive(seed, "initial model")
    for prefix, layer in module.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            bound = layer.weight[0].numel() ** -0.5
            for name in ("weight", "bias"):
                key = f"{prefix}.{name}" if prefix else name
                if key in arrays:
                    arrays[key] = rng.uniform(-bound, bound, arrays[key].shape).astype(
                        np.float32
                    )
    return layout.flatten(arrays)


def single_thread() -> None:
    """Give this process one intra-op thread, for the same bits everywhere."""
    torch.set_num_threads(1)


def tensor_view(array: Array) -> torch.Tensor:
    """Return a tensor on the array's memory, to be read only.

    torch warns about memory it must not write, such as Ray's shared arrays; nothing
    here writes to data.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)
