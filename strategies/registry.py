"""The table of methods: ours, and those that other packages offer by entry point."""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, final

from typing_extensions import override

from fedunlearn.errors import ConfigError
from fedunlearn.local import METHODS_GROUP

if TYPE_CHECKING:
    from fedunlearn.method import ListedMethod


@final
class MethodTable(Mapping[str, "type[ListedMethod]"]):
    """Name -> class; a method of another package is imported when it is looked up.

    Args:
        own: This project's methods.
    """

    def __init__(self, own: Mapping[str, "type[ListedMethod]"]) -> None:
        self.own = own

    @override
    def __getitem__(self, name: str) -> "type[ListedMethod]":
        if name in self.own:
            return self.own[name]
        return _loaded(self._offered()[name])

    @override
    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._offered()

    @override
    def __iter__(self) -> Iterator[str]:
        return iter((*self.own, *self._offered()))

    @override
    def __len__(self) -> int:
        return len(self.own) + len(self._offered())

    def _offered(self) -> dict[str, EntryPoint]:
        """Return the methods of other packages.

        Raises:
            ConfigError: If one takes the name of another.
        """
        found: dict[str, EntryPoint] = {}
        for entry in _entries():
            if entry.name in self.own or entry.name in found:
                raise ConfigError(
                    f"method {entry.name!r} of {entry.value} has the name of another "
                    "method: uninstall that package or rename its entry point"
                )
            found[entry.name] = entry
        return found


@lru_cache(maxsize=1)
def _entries() -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=METHODS_GROUP))


def _loaded(entry: EntryPoint) -> "type[ListedMethod]":
    try:
        found: type[ListedMethod] = entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"method {entry.name!r} of {entry.value} cannot be imported: {error}"
        ) from error
    return found
