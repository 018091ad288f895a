"""The index of a dataset: an SQLite file, how it is brought up to date, and its errors in words."""

import errno
import gc
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from sqlite3 import Connection, Row
from typing import Any, TypeVar

R = TypeVar("R")
T = TypeVar("T")

APPLICATION_ID = 0x4433504F  # "D3PO"
PAYLOAD = ("sets", "images", "conditioning")
BUSY = 30  # seconds that SQLite itself waits for another process
ATTEMPTS = 3
# SQLite's words about a damaged file may be damaged too, and text that it is given may be no text
SQL_ERRORS = (sqlite3.Error, UnicodeError)
# What comes of reading values that another program made up.
NONSENSE = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


class DatasetError(ValueError):
    """What is wrong with a dataset, which file it is and what to do."""


class DiskFull(DatasetError):
    """There is no room."""


def failure(error: Exception, path: Path) -> DatasetError:
    """What SQLite, safetensors or the system said about a file, as a DatasetError."""
    message = str(error).lower()
    number = errno.errorcode.get(getattr(error, "errno", None) or 0)
    full = ("disk is full", "no space left", "os error 112")  # SQLite, safetensors, safetensors on Windows
    if number in ("ENOSPC", "EDQUOT", "EFBIG") or any(words in message for words in full):
        return DiskFull(f"{path}: the disk is full. Nothing was changed; make room on it, then do this again")
    if (
        number in ("EACCES", "EPERM", "EROFS")
        or "readonly database" in message
        or "unable to open database" in message
    ):
        return DatasetError(
            f"{path} cannot be opened or written ({error}). Nothing was changed; allow this program to "
            f"write to {path.parent}, or choose another folder"
        )
    if "locked" in message:
        return DatasetError(
            f"{path} is held by another program ({error}). Nothing was changed; close that program, "
            "then do this again"
        )
    if isinstance(error, UnicodeEncodeError):
        return DatasetError(
            f"{path}: {error.object!r:.80} has half a character in it, which no file can keep. Nothing was "
            "changed; write that text (a prompt, a name) again"
        )
    if type(error) in (sqlite3.DatabaseError, UnicodeDecodeError):
        return DatasetError(
            f"{path} is not the index of a dataset, or is damaged ({error}). It was left as it is: put "
            "a copy of it back, or choose another folder"
        )
    return DatasetError(
        f"{path} could not be read or written ({error}). Nothing was changed; see whether its disk is "
        "there and in order, then do this again"
    )


def each_readable(rows: Iterable[R], read: Callable[[R], T]) -> Iterator[T]:
    """read(row) of each row that makes sense; the others are left out, and the log says which."""
    for row in rows:
        try:
            value = read(row)
        except NONSENSE as error:
            logging.warning("left out: %s", error)
        else:
            yield value


@contextmanager
def uncollected() -> Iterator[None]:
    """Python's collector rests: of many rows, of which none is garbage, it would look at all again and again,
    and at all else that is loaded."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def version_1(connection: Connection) -> None:
    for statement in (
        """CREATE TABLE conditioning (
            hash TEXT PRIMARY KEY,
            file TEXT NOT NULL UNIQUE,
            bytes INTEGER NOT NULL)""",
        """CREATE TABLE sets (
            id TEXT PRIMARY KEY,
            created TEXT NOT NULL,
            share REAL NOT NULL,
            candidates INTEGER NOT NULL,
            prompt TEXT,
            model TEXT NOT NULL,
            model_name TEXT NOT NULL,
            settings TEXT NOT NULL,
            conditioning TEXT REFERENCES conditioning(hash),
            trajectory TEXT UNIQUE,
            trajectory_bytes INTEGER NOT NULL)""",
        """CREATE TABLE images (
            set_id TEXT NOT NULL REFERENCES sets(id) ON DELETE CASCADE,
            candidate INTEGER NOT NULL,
            file TEXT NOT NULL UNIQUE,
            bytes INTEGER NOT NULL,
            PRIMARY KEY (set_id, candidate))""",
        """CREATE TABLE judgements (
            number INTEGER PRIMARY KEY,
            set_id TEXT NOT NULL REFERENCES sets(id) ON DELETE CASCADE,
            annotator TEXT NOT NULL,
            judgement TEXT,
            finished INTEGER NOT NULL,
            pairs TEXT NOT NULL,
            strict INTEGER NOT NULL,
            ties INTEGER NOT NULL,
            time TEXT NOT NULL,
            tool TEXT NOT NULL)""",
        "CREATE INDEX sets_by_time ON sets (created, id)",
        "CREATE INDEX sets_by_share ON sets (share)",
        "CREATE INDEX sets_by_model ON sets (model)",
        "CREATE INDEX sets_by_conditioning ON sets (conditioning)",
        "CREATE INDEX judgements_by_set ON judgements (set_id, annotator, number)",
        """CREATE VIEW counting AS SELECT * FROM judgements AS j WHERE finished AND NOT EXISTS (
            SELECT 1 FROM judgements AS later
            WHERE later.set_id = j.set_id AND later.annotator = j.annotator AND later.number > j.number)""",
        """CREATE VIEW files AS
            SELECT 'sets' AS kind, trajectory AS file, trajectory_bytes AS bytes FROM sets \
WHERE trajectory IS NOT NULL
            UNION ALL SELECT 'images', file, bytes FROM images
            UNION ALL SELECT 'conditioning', file, bytes FROM conditioning""",
    ):
        connection.execute(statement)


def version_2(connection: Connection) -> None:
    """Which judgements count is written beside them, so that what asks for these reads no others."""
    newest = "(SELECT max(number) FROM judgements WHERE set_id = {0}.set_id AND annotator = {0}.annotator)"
    for statement in (
        "ALTER TABLE judgements ADD COLUMN counts INTEGER NOT NULL DEFAULT 0",
        f"UPDATE judgements AS j SET counts = finished WHERE number = {newest.format('j')}",
        f"""CREATE TRIGGER newest_counts AFTER INSERT ON judgements BEGIN
            UPDATE judgements SET counts = 0
                WHERE set_id = NEW.set_id AND annotator = NEW.annotator AND counts;
            UPDATE judgements SET counts = finished WHERE number = {newest.format("NEW")};
        END""",
        "CREATE INDEX counting_by_set ON judgements (set_id, annotator, counts) WHERE counts",
        "CREATE INDEX counting_by_annotator ON judgements (annotator, strict, ties, counts) WHERE counts",
        "DROP VIEW counting",
        "CREATE VIEW counting AS SELECT * FROM judgements WHERE counts",
    ):
        connection.execute(statement)


MIGRATIONS = [version_1, version_2]  # MIGRATIONS[n] makes version n + 1 out of version n


class Index:
    """One connection behind a lock, so that any thread may use it; each process opens its own.

    A change is on disk when `write` returns. The journal is a rollback journal, which network shares can
    bear. Its removal is what commits, and synchronous=EXTRA makes that survive a power cut too.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._lock = path, threading.RLock()
        try:
            self._connection = sqlite3.connect(
                path, timeout=BUSY, isolation_level=None, check_same_thread=False
            )
            self._connection.row_factory = sqlite3.Row
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise
        except SQL_ERRORS as error:
            raise failure(error, path) from error

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def read(self, query: str, values: Any = ()) -> list[Row]:
        """All rows of a query."""
        return self.together(lambda connection: connection.execute(query, values).fetchall())

    def together(self, work: Callable[[Connection], T]) -> T:
        """work(connection), seeing one state of the index throughout: its result."""
        try:
            with self._lock:
                return self._transaction("BEGIN", work)
        except SQL_ERRORS as error:
            raise failure(error, self.path) from error

    def write(self, work: Callable[[Connection], T]) -> T:
        """work(connection) in one transaction: its result, once the change is on disk.

        Where another process is writing, `work` may run again. Raises DatasetError, nothing changed, if it
        cannot be written.
        """
        with self._lock:
            attempts = 0
            while True:
                attempts += 1
                try:
                    return self._transaction("BEGIN IMMEDIATE", work)
                except SQL_ERRORS as error:
                    if "locked" not in str(error) or attempts == ATTEMPTS:
                        raise failure(error, self.path) from error

    def _transaction(self, begin: str, work: Callable[[Connection], T]) -> T:
        try:
            return self._once(begin, work)
        except sqlite3.OperationalError as error:
            if "decode" not in str(error):
                raise
        # one broken text spoils no query; that each is looked at takes half as long again
        self._connection.text_factory = partial(str, encoding="utf-8", errors="replace")
        return self._once(begin, work)

    def _once(self, begin: str, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        try:
            connection.execute(begin)
            result = work(connection)
            connection.execute("COMMIT")
            return result
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _prepare(self) -> None:
        for setting in ("synchronous = EXTRA", "fullfsync = ON", "foreign_keys = ON", "trusted_schema = OFF"):
            self._connection.execute(f"PRAGMA {setting}")
        if self._version() < len(MIGRATIONS):
            self.write(self._migrate)
        self._connection.execute("PRAGMA journal_mode = DELETE")

    def _migrate(self, connection: Connection) -> None:
        for migrate in MIGRATIONS[self._version() :]:  # asked again: another process may have been quicker
            migrate(connection)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        """The file's version, 0 for a new one. Raises DatasetError if it is not ours or too new."""
        application, version, tables = (
            self._connection.execute(query).fetchone()[0]
            for query in (
                "PRAGMA application_id",
                "PRAGMA user_version",
                "SELECT count(*) FROM sqlite_master",
            )
        )
        if application == version == tables == 0:
            if any((self.path.parent / kind).exists() for kind in PAYLOAD):
                raise DatasetError(
                    f"{self.path} is empty or missing, though its folder holds the files of a dataset. "
                    "Put a copy of it back, or choose another folder"
                )
            return 0
        if application != APPLICATION_ID:
            raise DatasetError(
                f"{self.path} is the database of another program. It was left as it is: choose another folder"
            )
        if version > len(MIGRATIONS):
            raise DatasetError(
                f"{self.path} was written by a newer version of this pack (format {version}; this one "
                f"knows {len(MIGRATIONS)}). It was left as it is: update the pack"
            )
        return int(version)
