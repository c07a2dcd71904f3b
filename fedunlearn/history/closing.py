"""The seal of a closed index: finds a flipped byte where SQLite itself would not look.

It is written when a writer closes and names the last log entry. After a crash it is
older than the log, and the log's own chain has to do.
"""

import hashlib
import hmac
from pathlib import Path

from fedunlearn.errors import DamagedError
from fedunlearn.history.files import Files, replace, unreadable
from fedunlearn.history.index import Index, has_wal

SEAL_FILE = "index.seal"


def seal_index(folder: Path, files: Files, last: tuple[int, str], key: bytes) -> None:
    """Write the seal of a closed index, if all of it is in its file.

    A reader may keep the write-ahead log from being emptied; the older seal stays then.

    Args:
        folder: The history.
        files: The disk.
        last: Number and hash of the last log entry.
        key: The history's key.
    """
    if has_wal(folder / "index.db"):
        return
    digest = hashlib.sha256((folder / "index.db").read_bytes()).hexdigest()
    replace(files, folder / SEAL_FILE, _line(last, digest, key), "close.seal")


def check_index(index: Index, key: bytes) -> bool:
    """Raise DamagedError if the index is not what it was when it was closed.

    Returns:
        Whether it is; False if it was not closed since it last changed.
    """
    path = index.path.with_name(SEAL_FILE)
    if not path.exists():
        return False
    content = _read(path)
    sealed = _parse(content)
    if sealed is None or not hmac.compare_digest(content, _line(*sealed, key)):
        raise DamagedError.of("it is not a seal of this history", path)
    (seq, last_hash), digest = sealed
    rows = index.select("SELECT hash FROM log WHERE seq = ?", seq)
    if not rows or rows[0][0] != last_hash:
        raise DamagedError.of("it lacks entries it had when it was closed", index.path)
    found = hashlib.sha256(_read(index.path)).hexdigest()
    ((newest,),) = index.select("SELECT max(seq) FROM log")
    if newest == seq and found != digest:
        raise DamagedError.of("it changed since it was closed", index.path)
    return bool(newest == seq)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(error, path) from error


def _line(last: tuple[int, str], digest: str, key: bytes) -> bytes:
    text = f"{last[0]} {last[1]} {digest} "
    mac = hmac.digest(key, b"index seal " + text.encode("ascii"), "sha256")
    return (text + mac.hex() + "\n").encode("ascii")


def _parse(content: bytes) -> tuple[tuple[int, str], str] | None:
    try:
        seq, last_hash, digest, _ = content.decode("ascii").split(" ")
        return (int(seq), last_hash), digest
    except ValueError:
        return None
