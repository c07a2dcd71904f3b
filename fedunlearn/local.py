"""What a client does with a model besides training: a method's own local procedure.

A method that needs a gradient, a Fisher diagonal or another loss at the clients brings
a frozen dataclass of numbers and words with a ``run``. The server sends its name and
fields, the client finds the same class in its own installation; no code travels.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedunlearn.errors import EmptyRoundError, RequestError
from fedunlearn.history import ClientId, Counts
from fedunlearn.params import Matrix, Vector
from fedunlearn.training import Training
from fedunlearn.updates import Updates

Labels = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]
LogitGradient = Callable[[Matrix, Labels], Matrix]
"""A loss, known by its derivative: given scores ``(b, C)`` and classes ``(b,)``,
returns the derivative of the batch's loss by the scores, ``(b, C)``, float32."""

METHODS_GROUP = "fedunlearn.methods"
"""Entry points under which packages offer methods: name -> class."""
_OWN_PACKAGES = ("fedunlearn", "strategies")
_NAME, _NONES = "procedure", "procedure-none"


class LocalProblem(Protocol):
    """One party's data and loss, as a procedure sees them."""

    @property
    def labels(self) -> Labels:
        """The class of each example, shape ``(n,)``."""
        ...

    @property
    def training(self) -> Training:
        """How this party trains."""
        ...

    def batches(
        self, epochs: float | None = None, batch_size: int | None = None
    ) -> Sequence[Rows]:
        """Return the rows of each step; by default those of a round of training."""
        ...

    def logits(self, model: Vector, rows: Rows | None = None) -> Matrix:
        """Return the model's scores on some examples, shape ``(b, C)``."""
        ...

    def gradient(
        self,
        model: Vector,
        rows: Rows | None = None,
        loss: LogitGradient | None = None,
    ) -> Vector:
        """Return the gradient of a batch's loss, shape ``(P,)``.

        Args:
            model: Where, shape ``(P,)``.
            rows: Of which examples; None takes all.
            loss: Which loss; None takes the mean cross-entropy, without weight
                decay and the proximal term.
        """
        ...

    def gradient_moments(
        self, model: Vector, rows: Rows | None = None
    ) -> tuple[Vector, Vector]:
        """Return the examples' mean gradient and mean squared gradient.

        Both of shape ``(P,)``, of the cross-entropy, from one pass over the examples.
        The second is the diagonal of the empirical Fisher information.
        """
        ...

    def class_activations(self, model: Vector) -> Matrix:
        """Return each class's mean activation of each convolutional channel.

        Shape ``(C, channels)``, of the convolution's output after ReLU (a norm between
        them is passed by), averaged over positions and examples; zero for a class
        without examples. Channels of all layers stand side by side.
        """
        ...


class LocalProcedure(Protocol):
    """Something a client does with a model; a frozen dataclass of numbers and words."""

    def run(self, start: Vector, problem: LocalProblem) -> Vector:
        """Return a vector of any length: a model, a gradient, some counts.

        Args:
            start: The model that was sent, shape ``(P,)``; not to be written to.
            problem: The client's data and loss.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """What a cohort's procedures returned.

    Attributes:
        clients: Who, ascending.
        values: Their vectors, shape ``(K, Q)``.
        num_examples: Training examples each holds, ``(K,)``.
        num_steps: Gradients each took, ``(K,)``.
        num_samples: Examples each passed through its model, ``(K,)``.
    """

    clients: tuple[ClientId, ...]
    values: Matrix
    num_examples: Counts
    num_steps: Counts
    num_samples: Counts

    def as_updates(
        self, before: Vector, round_index: int | None, asked: Collection[ClientId]
    ) -> Updates:
        """Return the vectors as models; who has no example has no say.

        Args:
            before: The model they started from, shape ``(P,)``.
            round_index: Their round; None if they are no round of a model.
            asked: Who was asked.

        Raises:
            EmptyRoundError: If nobody has an example.
        """
        rows = np.flatnonzero(self.num_examples)
        if not rows.size:
            raise EmptyRoundError(f"nobody asked in round {round_index} has an example")
        return Updates(
            clients=tuple(self.clients[row] for row in rows),
            before=before,
            after=self.values[rows],
            num_examples=self.num_examples[rows],
            num_steps=self.num_steps[rows],
            num_samples=self.num_samples[rows],
            round_index=round_index,
            asked=tuple(sorted(asked)),
        )


def installed(module: str) -> bool:
    """Tell whether a module belongs to this project or offers methods by entry point.

    A client runs no other code at a server's word.
    """
    offered = {
        entry.module.split(".")[0] for entry in entry_points(group=METHODS_GROUP)
    }
    return module.split(".")[0] in offered.union(_OWN_PACKAGES)


def anything(module: str) -> bool:  # noqa: ARG001
    """Trust every module: in a simulation server and clients are one installation."""
    return True


def encode(procedure: LocalProcedure) -> dict[str, Any]:
    """Return a procedure as entries of a config record."""
    cls = type(procedure)
    values = {f.name: getattr(procedure, f.name) for f in fields(procedure)}  # type: ignore[arg-type]
    given = {f"{_NAME}.{k}": _plain(v) for k, v in values.items() if v is not None}
    # A record has no word for None.
    nones = [k for k, v in values.items() if v is None]
    named = f"{cls.__module__}:{cls.__qualname__}"
    return {_NAME: named, **({_NONES: nones} if nones else {}), **given}


def decode(
    config: Mapping[str, Any], trusted: Callable[[str], bool] = installed
) -> LocalProcedure:
    """Return the procedure that a config record names.

    Args:
        config: What a server sent.
        trusted: Tells whether code of a module may be run.

    Raises:
        RequestError: If there is no such procedure here, or it may not be run.
    """
    module, _, name = str(config.get(_NAME, "")).partition(":")
    if not trusted(module):
        raise RequestError(f"no procedure of {module!r} is installed here")
    lead = f"{_NAME}."
    values = {
        key.removeprefix(lead): tuple(value) if isinstance(value, list) else value
        for key, value in config.items()
        if key.startswith(lead)
    }
    values |= dict.fromkeys(config.get(_NONES, ()))
    try:
        found: Any = import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        if not _is_procedure(found, module):
            raise RequestError(f"{module}:{name} is no procedure")
        procedure: LocalProcedure = found(**values)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise RequestError(
            f"procedure {module}:{name} cannot be made: {error}"
        ) from error
    return procedure


def _is_procedure(found: object, module: str) -> bool:
    """Whether it is a dataclass of the module's own that can be run.

    A trusted module imports others: what it has from them is not to be called.
    """
    own = isinstance(found, type) and found.__module__ == module
    return own and is_dataclass(found) and callable(getattr(found, "run", None))


def _plain(value: Any) -> Any:  # noqa: ANN401
    return list(value) if isinstance(value, tuple) else value
