"""Clients whose data is made when it is asked for: federations larger than memory."""

from collections.abc import Callable, Sequence
from typing import final, overload

from typing_extensions import override

from fedunlearn.data.federation import ClientData


@final
class LazyClients(Sequence[ClientData]):
    """Behaves as a tuple of clients' data and keeps none of it.

    Args:
        make: Given a client id, returns its data; the same every time. It travels to
            Ray's workers, so it is a function of a module or a ``partial`` of one.
        sizes: How many examples each client trains on.
    """

    def __init__(self, make: Callable[[int], ClientData], sizes: Sequence[int]) -> None:
        self._make = make
        self.sizes = sizes

    @override
    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> ClientData: ...

    @overload
    def __getitem__(self, index: slice) -> list[ClientData]: ...

    @override
    def __getitem__(self, index: int | slice) -> ClientData | list[ClientData]:
        if isinstance(index, slice):
            return [self._make(client) for client in range(len(self))[index]]
        return self._make(range(len(self))[index])
