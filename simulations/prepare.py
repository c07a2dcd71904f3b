"""From a scenario to data, task and leavers: what all seeds share."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedunlearn.client import client_app
from fedunlearn.data import ClientData, Dataset, Federation, clients_of, federate
from fedunlearn.data.backdoor import Backdoor
from fedunlearn.data.divide import Divided, divide
from fedunlearn.errors import ConfigError, RequestError
from fedunlearn.history import ClientId
from fedunlearn.local import LocalProblem, anything
from fedunlearn.method import UnlearningRequest
from fedunlearn.models import ModelSpec
from fedunlearn.models.ensemble import Ensemble
from fedunlearn.problem import TorchProblem
from fedunlearn.rng import derive
from fedunlearn.task import LocalTask
from fedunlearn.training import LocalWork
from simulations.cores import usable_cores
from simulations.engine import SimulationGrid
from simulations.engine.cluster import Cluster
from simulations.engine.grid import Answering
from simulations.engine.kernels import (
    AUTO,
    REFERENCE,
    choose,
    find_device,
    make_kernel,
)
from simulations.engine.trainer import CohortSpec
from simulations.requests import joint, removals_of, requests_of, with_returns
from simulations.scenario import Outline, Scenario
from simulations.sequence import Removal


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a scenario amounts to before any training.

    Attributes:
        scenario: Where it came from.
        federation: The clean data.
        task: What clients train on: the same data, with the backdoor if there is one.
        request: Who leaves, and what else is to be forgotten.
        divided: What that takes from whom, of the clean data.
        removals: The same request by request.
        joins: Client -> the first round it takes part in, if that is not the first.
        server_data: Examples of the server's own, or None.
    """

    scenario: Scenario
    federation: Federation
    task: LocalTask
    request: UnlearningRequest
    divided: Divided
    removals: tuple[Removal, ...]
    joins: Mapping[ClientId, int] = field(default_factory=dict)
    server_data: ClientData | None = None

    def server_problem(self, seed: int) -> LocalProblem | None:
        """Return the server's examples as a procedure sees them."""
        if self.server_data is None:
            return None
        work = LocalWork(seed=seed, round_index=1)
        # The server's batch order is that of nobody: the number after the last client.
        return TorchProblem(self.task, self.server_data, len(self.task.clients), work)

    @property
    def forget(self) -> frozenset[ClientId]:
        """The leavers, and who is left with nothing to train on."""
        return self.request.clients | self.divided.gone

    @property
    def shrunk(self) -> frozenset[ClientId]:
        """The clients that stay and lose a part of their data."""
        return self.divided.shrunk


def prepare(scenario: Scenario) -> Prepared:
    """Load the data, deal it to clients and check who leaves.

    Raises:
        RequestError: If the data, the partition, a leaver or the model does not fit.
    """
    outline = scenario.outline
    dataset = scenario.data.load()
    federation = federate(
        dataset,
        scenario.partition,
        _number_of_clients(dataset, scenario),
        holdout=outline.holdout,
        seed=outline.data_seed,
    )
    federation, server_data = _server_share(federation, scenario)
    federation, joins = with_returns(federation, outline)
    everybody = range(len(federation.clients))
    _check_cohort(outline, len(everybody))
    requests = requests_of(federation, scenario)
    request = joint([asked for asked, _ in requests])
    request.check(everybody)
    divided = divide(federation.clients, request)
    if not (request.clients or divided.remaining):
        raise RequestError("no client holds anything of what is to be forgotten")
    if divided.gone >= set(everybody):
        raise RequestError("nothing would remain to train on")
    planted = _planted(federation, scenario, request.clients).clients
    task = LocalTask(
        clients=planted,
        divided=divide(planted, request),
        model=_model(scenario),
        input_shape=federation.input_shape,
        num_classes=federation.num_classes,
        training=scenario.training,
    )
    task.module()  # a model that does not fit the data fails here, before any work
    return Prepared(
        scenario=_with_kernel(scenario, task),
        federation=federation,
        task=task,
        request=request,
        divided=divided,
        removals=removals_of(requests, divided),
        joins=joins,
        server_data=server_data,
    )


def _server_share(
    federation: Federation, scenario: Scenario
) -> tuple[Federation, ClientData | None]:
    """Take the server's examples out of the test set."""
    wanted, there = scenario.outline.server_examples, len(federation.x_test)
    if not wanted:
        return federation, None
    if wanted >= there:
        raise ConfigError(
            f"server_examples is {wanted}, the test set holds {there}: leave some to "
            "measure on"
        )
    order = derive(scenario.outline.data_seed, "server data").permutation(there)
    own, rest = order[:wanted], np.sort(order[wanted:])
    x, y = federation.x_test, federation.y_test
    unlabelled = np.zeros(wanted, np.int64)
    data = ClientData("server", x[own], unlabelled, x[:0], y[:0])
    return replace(federation, x_test=x[rest], y_test=y[rest]), data


def _with_kernel(scenario: Scenario, task: LocalTask) -> Scenario:
    """Return the scenario with the kernel that ``auto`` stands for on this machine."""
    engine = scenario.engine
    device = find_device(engine.device)
    name = choose(task, device) if engine.kernel == AUTO else engine.kernel
    kernel = make_kernel(name, task, engine.device)  # one that does not fit fails here
    if engine.workers and not kernel.independent:
        raise ConfigError(
            f"engine.kernel={name} rounds by who is trained beside whom: it needs "
            "engine.workers=0"
        )
    resolved = {**scenario.resolved, "engine": {**scenario.resolved["engine"]}}
    resolved["engine"]["kernel"] = name
    return replace(scenario, engine=replace(engine, kernel=name), resolved=resolved)


def open_grid(prepared: Prepared) -> SimulationGrid:
    """Return a grid of a scenario's clients, to be used in a ``with`` statement."""
    scenario, task = prepared.scenario, prepared.task
    engine = scenario.engine
    spec = CohortSpec(
        task=task,
        kernel=engine.kernel,
        device=engine.device,
        threads=engine.threads or (1 if engine.workers else usable_cores()),
    )
    return SimulationGrid(
        client_app(task, anything),  # server and clients are one installation
        num_clients=len(task.clients),
        workers=engine.workers,
        cluster=Cluster(
            address=engine.address,
            cpus_per_worker=engine.cpus_per_worker,
            gpus_per_worker=engine.gpus_per_worker,
        ),
        # The reference is what a client of a real federation runs: the ClientApp.
        cohorts=None if engine.kernel == REFERENCE else spec,
        answering=_answering(prepared) if scenario.availability.limited else None,
    )


def _answering(prepared: Prepared) -> Answering:
    availability, task = prepared.scenario.availability, prepared.task

    def answering(work: LocalWork, clients: tuple[ClientId, ...]) -> list[bool]:
        samples = task.samples(clients, work)
        there = availability.answering(work.seed, work.round_index, clients, samples)
        return list(there)

    return answering


def trigger_value(federation: Federation) -> float:
    """Return the pixel value of a trigger: the brightest one of the test images."""
    return float(federation.x_test.max())


def _number_of_clients(dataset: Dataset, scenario: Scenario) -> int:
    number = scenario.outline.clients or clients_of(dataset, scenario.partition)
    if number is None:
        raise ConfigError(
            f"clients must be given: partition "
            f"{scenario.resolved['partition']['name']!r} works with any number"
        )
    return number


def _planted(
    federation: Federation, scenario: Scenario, leavers: frozenset[ClientId]
) -> Federation:
    backdoor: Backdoor | None = scenario.backdoor
    if backdoor is None:
        return federation
    backdoor.check(federation.input_shape, federation.num_classes)
    value, seed = trigger_value(federation), scenario.outline.data_seed
    named = frozenset(federation.client_id(c) for c in backdoor.planted_by)
    clients = list(federation.clients)
    for c in named or leavers:
        clients[c] = backdoor.plant(clients[c], value, seed=seed, client=c)
    for c in leavers - named if backdoor.camouflage else ():
        clients[c] = backdoor.hide(clients[c], value, seed=seed, client=c)
    return replace(federation, clients=tuple(clients))


def _model(scenario: Scenario) -> ModelSpec:
    """Return what the federation trains: one model, or one a shard."""
    outline = scenario.outline
    if outline.shards == 1:
        return scenario.model
    return Ensemble(member=scenario.model, shards=outline.shards, vote=outline.vote)


def _check_cohort(outline: Outline, clients: int) -> None:
    asked = {
        "clients_per_round": outline.clients_per_round,
        "shards": outline.shards,
    }
    for key, wanted in asked.items():
        if wanted is not None and wanted > clients:
            raise ConfigError(f"{key} is {wanted}, there are {clients} clients")
