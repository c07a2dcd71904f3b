"""Names of clients: any text, for people only; they never become part of a path."""

from collections.abc import Mapping

from fedunlearn.errors import RequestError, UnknownNameError
from fedunlearn.history.record import ClientId

MOST_NAME_BYTES = 1 << 16
MOST_DIGITS = 20


def check_names(names: Mapping[ClientId, str]) -> dict[ClientId, str]:
    """Return the names, or raise RequestError for one that cannot be kept.

    Names that look alike, such as the two ways to write an accented letter, are
    different names.
    """
    seen: dict[str, ClientId] = {}
    for client, name in names.items():
        try:
            size = len(name.encode())
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the name of client {client} is not text that can be stored: "
                f"{error.reason}"
            ) from error
        if size > MOST_NAME_BYTES:
            raise RequestError(
                f"the name of client {client} has {size} bytes; at most "
                f"{MOST_NAME_BYTES} are kept"
            )
        if name in seen:
            raise RequestError(
                f"clients {seen[name]} and {client} have the same name "
                f"{printable(name)}"
            )
        seen[name] = client
    return {int(client): name for client, name in names.items()}


def find_client(
    text: str, clients: tuple[ClientId, ...], names: Mapping[ClientId, str]
) -> ClientId:
    """Return the client a person means: an exact name first, then an id.

    Raises:
        UnknownNameError: If there is none.
    """
    for client, name in names.items():
        if name == text:
            return client
    short = len(text) <= MOST_DIGITS  # Python refuses to read thousands of them
    if short and text.isascii() and text.isdigit() and int(text) in clients:
        return int(text)
    known = [names.get(client, str(client)) for client in clients]
    raise UnknownNameError.of("client", printable(text), map(printable, known))


def printable(text: str) -> str:
    """Return a text as one line that does nothing to a terminal, at most 80 signs."""
    safe = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return safe if len(safe) <= 80 else f"{safe[:77]}..."  # noqa: PLR2004
