"""Making a damaged history readable again: lists what is lost, hides nothing.

Damaged files are moved to ``quarantine/``; what of them is intact is kept, the rest of
the round stays recorded without it. An index that cannot be trusted is rebuilt from the
files; its log is lost then.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fedunlearn.errors import DamagedError, HistoryError
from fedunlearn.history.append import note_bytes, payload_bytes
from fedunlearn.history.check import Finding, check_store
from fedunlearn.history.closing import SEAL_FILE, check_index, seal_index
from fedunlearn.history.files import Files, RealFiles, sync_folder
from fedunlearn.history.folder import check_format
from fedunlearn.history.index import Index
from fedunlearn.history.keys import KeyFiles, KeyRing
from fedunlearn.history.lock import Lock
from fedunlearn.history.rebuild import rebuild_index
from fedunlearn.history.record import ClientId
from fedunlearn.history.round_table import Head
from fedunlearn.history.seal import Written
from fedunlearn.history.segment import Segment
from fedunlearn.history.segment_write import copy_segment
from fedunlearn.history.settings import Settings, TipFile
from fedunlearn.history.store import INDEX, QUARANTINE, SEGMENTS, Store


@dataclass(frozen=True, slots=True)
class Loss:
    """One thing that is lost.

    Attributes:
        what: A sentence.
        file: The damaged file.
        round: Of which round, or None.
        client: Whose update, or None.
    """

    what: str
    file: Path
    round: int | None = None
    client: ClientId | None = None


def repair(
    folder: Path, *, dry_run: bool = False, files: Files | None = None
) -> tuple[Loss, ...]:
    """Make a damaged history readable again.

    Args:
        folder: The history.
        dry_run: Whether only to tell what would be lost. With a damaged index that is
            the index itself: what else is lost shows once it is rebuilt.
        files: The disk; None takes the real one.

    Returns:
        What is lost, most basic first; nothing if the history is whole.

    Raises:
        DamagedError: If its keys cannot be read: then nothing can.
        HistoryError: If there is none, its format is a newer one, another process is
            writing, or the disk refuses.
    """
    if not any((folder / name).exists() for name in (INDEX, "keys.bin", "outer.key")):
        raise HistoryError(f"{folder} holds no history")
    files = RealFiles() if files is None else files
    lock = Lock(folder)
    try:
        ring = KeyFiles(folder).read()
        settings = Settings.from_json(ring.settings)
        losses = _index_losses(folder, files, ring, settings)
        rebuild = any(loss.file == folder / INDEX for loss in losses)
        if rebuild and dry_run:
            return losses
        if losses and not dry_run:
            _quarantine(files, folder, folder / SEAL_FILE)
        if rebuild:
            for name in (INDEX, INDEX + "-wal", INDEX + "-shm"):
                _quarantine(files, folder, folder / name)
            rebuild_index(folder, files, ring, settings)
        return losses + _file_losses(folder, files, ring, dry_run, lock)
    except OSError as error:
        raise HistoryError(f"{folder} cannot be repaired: {error}") from error
    finally:
        lock.release()


def _index_losses(
    folder: Path, files: Files, ring: KeyRing, settings: Settings
) -> tuple[Loss, ...]:
    """Return what is lost with the index, if it or its seal cannot be trusted."""
    path, seal = folder / INDEX, folder / SEAL_FILE
    try:
        index = Index(path, write=False)
    except HistoryError as error:
        return (_index_loss(str(error), path),)
    try:
        if _is_as_closed(index, ring.store):
            check_format(index)
        store = Store(folder, files, index, ring, settings, lock=None)
        found = [f for f in check_store(store, read_data=False) if f.damage]
    except DamagedError as error:
        found = [Finding.of(error)]
    finally:
        index.close()
    if faults := [f.what for f in found if f.file == path]:
        return (_index_loss(faults[0], path),)
    return tuple(Loss(f.what, seal) for f in found if f.file == seal)


def _index_loss(fault: str, path: Path) -> Loss:
    lost = "its log, the clients' names and rounds of which no file was kept"
    return Loss(f"{fault}; with it goes {lost}", path)


def _is_as_closed(index: Index, key: bytes) -> bool:
    try:
        check_index(index, key)
    except DamagedError:
        return False
    return True


def _file_losses(
    folder: Path, files: Files, ring: KeyRing, dry_run: bool, lock: Lock
) -> tuple[Loss, ...]:
    index = Index(folder / INDEX, write=not dry_run)
    try:
        settings = Settings.from_json(ring.settings)
        store = Store(folder, files, index, ring, settings, None if dry_run else lock)
        losses = tuple(_repaired(store, dry_run))
        last = index.last_entry()
    finally:
        index.close()
    if not dry_run:
        for path in (KeyFiles(folder).ring_path, KeyFiles(folder).outer_path):
            path.chmod(0o600)
        if last is not None:
            seal_index(folder, files, (last.seq, last.hash), ring.store)
    return losses


def _repaired(store: Store, dry_run: bool) -> Iterator[Loss]:
    for head in store.table.heads():
        if head.written is not None:
            losses, good = _examine(store, head.written, head.index)
            yield from losses
            if losses and not dry_run:
                _keep_rest(store, head, good)
    tip = store.tip_file
    if tip is not None and tip.written is not None:
        losses, _ = _examine(store, tip.written, tip.round + 1)
        if losses:
            path = store.path(tip.written)
            yield Loss(
                "where the server stood is lost: training cannot be resumed", path
            )
            if not dry_run:
                _drop_tip(store, tip)


def _examine(
    store: Store, written: Written, index: int
) -> tuple[list[Loss], "Good | None"]:
    """Return what of a file is lost, and what of it is good."""
    try:
        segment = store.open_file(written)
    except DamagedError as error:
        return [Loss(str(error), store.path(written), index)], None
    losses, good = [], dict[str, list[int]]()
    for name, part in segment.parts.items():
        for row in range(len(part.owners)):
            try:
                segment.rows(name, [row], store.keys)
            except DamagedError as error:
                losses.append(Loss(str(error), segment.path, index, error.client))
                continue
            except HistoryError:
                pass  # its key is gone: the erasure takes it out when it goes on
            good.setdefault(name, []).append(row)
    return losses, Good(segment, good)


@dataclass(frozen=True, slots=True)
class Good:
    """The intact rows of a damaged file."""

    segment: Segment
    rows: dict[str, list[int]]


def _keep_rest(store: Store, head: Head, good: Good | None) -> None:
    """Let the round refer to a file of its intact rows, if there are any."""
    written, owners = None, list[ClientId]()
    if good is not None and good.rows:
        segment = good.segment
        written = copy_segment(
            store.files,
            store.new_path("round", head.index),
            segment,
            good.rows,
            {name: segment.facts[name] for name in ("record", "codec")},
            store.keys,
            "thin.round",
        )
        sync_folder(store.files, store.folder / SEGMENTS)
        if "updates" in good.rows:
            whose = segment.parts["updates"].owners
            owners = [c for at in good.rows["updates"] if (c := whose[at]) is not None]
    has_broadcast = good is not None and "broadcast" in good.rows
    with store.index.transaction(store.files, "thin"):
        before = payload_bytes(store, *store.table.held(), 0)
        store.table.point_to(head.index, written, owners, has_broadcast)
        note_bytes(store, payload_bytes(store, *store.table.held(), 0) - before)
        seal = None if written is None else written.seal
        entry = {"type": "lost", "round": head.index, "seal": seal}
        store.index.add_entry(entry)
    if head.written is not None:
        _quarantine(store.files, store.folder, store.path(head.written))


def _drop_tip(store: Store, tip: TipFile) -> None:
    with store.index.transaction(store.files, "thin"):
        nowhere = TipFile(tip.round, tip.generation, None)
        store.index.set_meta("tip", nowhere.to_json())
        store.index.set_meta("sums_from", "")
        without_sums = payload_bytes(store, *store.table.held(), 0)
        note_bytes(store, without_sums - int(store.index.meta("nbytes")))
        store.index.add_entry({"type": "lost tip", "round": tip.round})
    if tip.written is not None:
        _quarantine(store.files, store.folder, store.path(tip.written))


def _quarantine(files: Files, folder: Path, path: Path) -> None:
    if path.exists():
        (folder / QUARANTINE).mkdir(exist_ok=True, mode=0o700)
        target, number = folder / QUARANTINE / path.name, 1
        while target.exists():  # put away by an earlier repair
            number += 1
            target = target.with_name(f"{path.name}.{number}")
        files.rename(path, target)
