# mypy: disable-error-code="import-not-found,import-untyped,misc"
"""What the contestant ``pfl`` hands to pfl-research: data, model, order of the rounds.

Imported once the environment says which process of how many this is: pfl joins the
others when it is imported.
"""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import final

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from torch import nn
from torch.nn import functional
from typing_extensions import override

from fedunlearn.models.state import arrays_of, load, tensor_view
from fedunlearn.params import Vector
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork, batch_order

_ENDLESS = 2**31 - 1


@final
class Clock:
    """The round this process is in.

    Attributes:
        seed: Of the batch orders.
        round_index: From 1; 0 before the first.
        position: How many clients were drawn in it.
        kernel: Seconds of local training in it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.round_index = self.position = 0
        self.kernel = 0.0

    def next_round(self) -> None:
        """Begin a round."""
        self.round_index += 1
        self.position, self.kernel = 0, 0.0


class UserData(Dataset):
    """One client's data, in the batch order of the round.

    Args:
        task: The learning task.
        client: Which client.
        clock: Tells the round.
    """

    def __init__(self, task: LocalTask, client: int, clock: Clock) -> None:
        data = task.clients[client]
        self._x, self._y = tensor_view(data.x), tensor_view(data.y)
        self._training, self._client, self._clock = task.training, client, clock
        super().__init__([self._x, self._y], user_id=str(client))

    @override
    def iter(
        self, batch_size: int | None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        begin = time.perf_counter()
        work = LocalWork(seed=self._clock.seed, round_index=self._clock.round_index)
        for rows in batch_order(len(self._y), self._training, self._client, work):
            chosen = torch.from_numpy(rows)
            yield self._x[chosen], self._y[chosen]
        self._clock.kernel += time.perf_counter() - begin


class WithLoss(nn.Module):
    """A module with what pfl asks of one."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the loss of a batch."""
        return functional.cross_entropy(self.net(x), y)

    def metrics(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, float]:  # noqa: ARG002
        """Return nothing: nobody evaluates."""
        return {}


class Gate(TrainingProcessCallback):
    """Stops pfl between two rounds.

    Args:
        open_next: Called after each round and before the first; waits for the order to
            train and returns whether there was one.
    """

    def __init__(self, open_next: Callable[[], bool]) -> None:
        self._open_next = open_next

    @override
    def after_central_iteration(
        self, aggregate_metrics: object, model: object, *, central_iteration: int
    ) -> tuple[bool, object]:
        return not self._open_next(), Metrics()


@final
class PflTraining:
    """A federation as pfl trains it.

    Args:
        task: The learning task.
        seed: Of the initial model and the batch orders.
    """

    def __init__(self, task: LocalTask, seed: int) -> None:
        self.clock = Clock(seed)
        self._task, self._layout = task, task.layout
        self._net = task.new_module()
        load(self._net, self._layout, task.initial_model(seed))
        self._users = [
            UserData(task, client, self.clock) for client in range(len(task.clients))
        ]

    def model(self) -> Vector:
        """Return the global model, shape ``(P,)``."""
        return self._layout.flatten(arrays_of(self._net))

    def run(self, open_next: Callable[[], bool]) -> None:
        """Train round after round; see :class:`Gate`."""
        if not open_next():
            return
        training = self._task.training
        module = WithLoss(self._net)
        algorithm = FederatedAveraging()
        _skip_evaluation(algorithm)
        algorithm.run(
            NNAlgorithmParams(
                central_num_iterations=_ENDLESS,
                evaluation_frequency=_ENDLESS,
                train_cohort_size=len(self._users),
                val_cohort_size=0,
            ),
            self._backend(),
            PyTorchModel(
                module,
                local_optimizer_create=torch.optim.SGD,
                central_optimizer=torch.optim.SGD(module.parameters(), lr=1.0),
            ),
            NNTrainHyperParams(
                local_num_epochs=1,
                local_learning_rate=training.lr,
                local_batch_size=training.batch_size,
            ),
            callbacks=[Gate(open_next)],
            send_metrics_to_platform=False,
        )

    def _backend(self) -> SimulatedBackend:
        users = FederatedDataset(self._users.__getitem__, self._draw)
        return SimulatedBackend(
            training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]
        )

    def _draw(self) -> int:
        """Return the next client: all in turn, from the first in every round."""
        client = self.clock.position % len(self._users)
        self.clock.position += 1
        return client


def _skip_evaluation(algorithm: FederatedAveraging) -> None:
    # pfl always evaluates in iteration 0; one that was restored goes on with 1.
    state = Path(gettempdir()) / "algorithm_checkpoint.json"
    state.write_text(json.dumps({"current_central_iteration": 0}), encoding="utf-8")
    algorithm.load(str(state.parent))
