"""Which node is which client.

Flower's node ids are random in its own runtimes; a client id (its partition id) is
stable. Identity comes from the node that answers, never from what a training reply
claims.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedunlearn.client import IDENTIFY
from fedunlearn.errors import RunError
from fedunlearn.history import ClientId

Identify = Callable[[Grid, Collection[int]], Mapping[int, ClientId]]
"""Given a grid and node ids, tells the client behind each node."""


def ask_nodes(grid: Grid, nodes: Collection[int]) -> dict[int, ClientId]:
    """Return node id -> client id as the nodes themselves answer.

    Raises:
        RunError: If a node does not answer with its partition id.
    """
    questions = [
        Message(RecordDict(), dst_node_id=n, message_type=f"query.{IDENTIFY}")
        for n in nodes
    ]
    found: dict[int, ClientId] = {}
    for answer in grid.send_and_receive(questions):
        node = answer.metadata.src_node_id
        if (claim := _claim(answer)) is None:
            raise RunError(
                f"node {node} did not say which client it is; add "
                "fedunlearn.client.add_identity(app) to its ClientApp"
            )
        found[node] = claim
    return found


def _claim(answer: Message) -> ClientId | None:
    """Return the partition id in an answer, or None if it holds no proper one."""
    if answer.has_error() or "client" not in answer.content.config_records:
        return None
    claim = answer.content.config_records["client"].get("partition-id")
    whole = isinstance(claim, int) and not isinstance(claim, bool)
    return claim if whole and claim >= 0 else None  # type: ignore[operator,return-value]


@dataclass(slots=True)
class Directory:
    """Remembers who was identified; asks about new nodes only.

    Attributes:
        identify: How a node is identified.
    """

    identify: Identify = ask_nodes
    _clients: dict[int, ClientId] = field(default_factory=dict)
    _present: frozenset[int] = frozenset()
    _there: Mapping[ClientId, int] = field(default_factory=dict)

    def refresh(self, grid: Grid) -> Mapping[ClientId, int]:
        """Return client id -> node id for the nodes that are there now, by client id.

        Raises:
            RunError: If two of them claim the same partition id.
        """
        present = frozenset(grid.get_node_ids())
        if present and present == self._present:
            return self._there
        if new := sorted(present - self._clients.keys()):
            self._clients.update(self.identify(grid, new))
        pairs = sorted((self._clients[n], n) for n in present if n in self._clients)
        if len(there := dict(pairs)) < len(pairs):
            raise RunError("two nodes claim the same partition id")
        # Who could not be identified is asked again.
        self._present = present if len(there) == len(present) else frozenset()
        self._there = MappingProxyType(there)
        return self._there

    def client_of(self, node: int) -> ClientId | None:
        """Return the client behind a node, or None for a stranger."""
        return self._clients.get(node)
