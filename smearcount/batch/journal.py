"""The finished rows of a batch, each on the disk as soon as it is finished, so that a run that was killed can go on.

An SQLite file of plain columns and JSON; nothing in it is ever executed, and one whose tables are not exactly those
written here is refused. A row is known by the picture's name, the SHA-256 of its bytes, and the identity of the run:
version, models with checksums, taxonomy, and every setting that has an effect on the counts. Rows of another identity
stay in the file and are not used. Whether a row may be used again is decided in `run.py`. What was measured for the
scales of slides is kept in the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from smearcount.arrays import FloatArray
from smearcount.errors import ImageError, UsageError
from smearcount.records import Provenance

__all__ = ["Journal", "Measure", "Record", "provenance_json"]

_APPLICATION = 0x534D4352
_FORMAT = 3
_SCHEMA = (
    "CREATE TABLE identities (id INTEGER PRIMARY KEY, content TEXT NOT NULL UNIQUE, provenance TEXT NOT NULL)",
    "CREATE TABLE pictures (identity INTEGER NOT NULL, image BLOB NOT NULL, sha256 TEXT NOT NULL, "
    "status TEXT NOT NULL, lasting INTEGER NOT NULL, row TEXT NOT NULL, counts TEXT NOT NULL, cells BLOB, "
    "files TEXT NOT NULL, seconds REAL NOT NULL, worker TEXT NOT NULL, finished TEXT NOT NULL, given TEXT NOT NULL, "
    "PRIMARY KEY (identity, image)) WITHOUT ROWID",
    "CREATE TABLE measures (identity INTEGER NOT NULL, image BLOB NOT NULL, sha256 TEXT NOT NULL, "
    "width INTEGER NOT NULL, height INTEGER NOT NULL, diameters TEXT NOT NULL, "
    "PRIMARY KEY (identity, image)) WITHOUT ROWID",
)
_COLUMNS = "sha256, status, lasting, row, counts, cells, files, seconds, worker, finished, given"


@dataclass(frozen=True)
class Record:
    """All that is kept of one picture: plain values, so that any process can make it.

    Attributes:
        sha256: of the bytes that were read; empty where they could not be.
        status: `ok` or `failed`.
        lasting: a failure of the picture itself, which the same bytes repeat.
        row: of the report, as JSON.
        counts: what slide totals need, as JSON.
        cells: the rows of its cells without picture and slide, as compressed CSV; None where none were asked for.
        files: the pictures written for it, `{folder: {name: sha256}}`, as JSON.
        seconds: that the analysis took.
        worker: machine and process, or how it ended.
        finished: date and time, UTC.
        given: the scales of its slide and the region of its own that it was analysed with, as JSON.
        provenance: what made the result, as JSON; empty for a failure. It is the same for all pictures of a report.
    """

    sha256: str
    status: str
    lasting: bool
    row: str
    counts: str = "{}"
    cells: bytes | None = None
    files: str = "{}"
    seconds: float = 0.0
    worker: str = ""
    finished: str = ""
    given: str = "{}"
    provenance: str = ""

    def content(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Row, counts and files as values.

        Raises:
            ValueError: they are no such JSON.
        """
        row, counts, files = json.loads(self.row), json.loads(self.counts), json.loads(self.files)
        if not all(isinstance(each, dict) for each in (row, counts, files)):
            raise ValueError("expected three objects")
        return row, counts, files

    def cell_lines(self) -> bytes:
        """The rows of its cells as CSV without picture and slide."""
        return zlib.decompress(self.cells) if self.cells else b""


@dataclass(frozen=True)
class Measure:
    """The red cells of a picture from which the scale of its slide is estimated, as plain values.

    Attributes:
        sha256: of the bytes that were read.
        width: of the picture in pixels.
        height: of the picture in pixels.
        diameters: in pixels, as JSON; none where the picture has a scale of its own, or can't be read.
        provenance: what found them, as JSON; empty where nothing did.
    """

    sha256: str
    width: int = 0
    height: int = 0
    diameters: str = "[]"
    provenance: str = ""

    def red_px(self) -> FloatArray:
        """The diameters as `(N,)` values.

        Raises:
            ValueError: they are no such JSON.
            TypeError: they are no numbers.
        """
        return np.array(json.loads(self.diameters), np.float32)


def provenance_json(provenance: Provenance) -> str:
    """What made a result, so that the same gives the same text."""
    return json.dumps(vars(provenance), sort_keys=True, default=dict)


class Journal:
    """The journal of one report, for one identity. Only the process that holds the lock of the report opens it.

    Args:
        path: the file; made where there is none.
        identity: what the rows depend on besides the picture.
        fresh: begin anew, whatever is there.

    Raises:
        UsageError: the file is no journal, or one of another version.
        ImageError: it can't be read or written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, fresh: bool = False) -> None:
        self.path = path
        with self._named():
            self._base = self._opened()
            if fresh:
                self._base.close()
                _remove(path)
                self._base = self._opened()
        try:
            with self._named():
                self._prepare()
                self._identity = self._number(json.dumps(identity, sort_keys=True))
        except BaseException:
            self._base.close()
            raise

    def _opened(self) -> sqlite3.Connection:
        """The file, if it is ours or new; one of other programs is left as it is."""
        base = sqlite3.connect(self.path, isolation_level=None)
        try:
            # One process writes, on any file system: SQLite needs no shared memory then.
            base.execute("PRAGMA locking_mode=EXCLUSIVE")
            base.execute("PRAGMA trusted_schema=OFF")
            tables = base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if tables and base.execute("PRAGMA application_id").fetchone()[0] != _APPLICATION:
                raise UsageError(f"{self.path}: is no journal of smearcount; move it away, or give another --out")
        except BaseException:
            base.close()
            raise
        return base

    def _prepare(self) -> None:
        base = self._base
        base.execute("PRAGMA journal_mode=WAL")
        base.execute("PRAGMA synchronous=FULL")  # what is committed outlives the power
        if not base.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            with self._transaction():
                for statement in _SCHEMA:
                    base.execute(statement)
                base.execute(f"PRAGMA application_id={_APPLICATION}")
                base.execute(f"PRAGMA user_version={_FORMAT}")
        found = {sql for (sql,) in base.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")}
        if found != set(_SCHEMA) or base.execute("PRAGMA user_version").fetchone()[0] != _FORMAT:
            raise UsageError(
                f"{self.path}: a journal of another version; give --fresh to begin a new one, or another --out"
            )

    def _number(self, identity: str) -> int:
        with self._transaction():
            self._base.execute("INSERT OR IGNORE INTO identities (content, provenance) VALUES (?, '')", (identity,))
        found = self._base.execute("SELECT id FROM identities WHERE content = ?", (identity,)).fetchone()
        return int(found[0])

    def close(self) -> None:
        """Bring everything into the one file."""
        self._base.close()

    def add(self, records: Iterable[tuple[str, Record]]) -> None:
        """Keep the records of pictures; when this returns they are on the disk, all of them or, if it raises, none.

        Raises:
            UsageError: a record was made with something else than those before it.
            ImageError: the disk is full or fails.
        """
        with self._named(), self._transaction():
            for image_id, record in records:
                self._check_provenance(record.provenance)
                values = (
                    *(record.sha256, record.status, int(record.lasting), record.row, record.counts, record.cells),
                    *(record.files, record.seconds, record.worker, record.finished, record.given),
                )
                self._base.execute(
                    f"INSERT OR REPLACE INTO pictures (identity, image, {_COLUMNS}) VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?)",
                    (self._identity, os.fsencode(image_id), *values),
                )

    def add_measures(self, measures: Iterable[tuple[str, Measure]]) -> None:
        """Keep the red cells of pictures, as `add` keeps records.

        Raises:
            UsageError: they were found with something else than those before.
            ImageError: the disk is full or fails.
        """
        with self._named(), self._transaction():
            for image_id, each in measures:
                self._check_provenance(each.provenance)
                values = (each.sha256, each.width, each.height, each.diameters)
                self._base.execute(
                    "INSERT OR REPLACE INTO measures (identity, image, sha256, width, height, diameters) "
                    "VALUES (?,?,?,?,?,?)",
                    (self._identity, os.fsencode(image_id), *values),
                )

    def _check_provenance(self, provenance: str) -> None:
        """One report is made by one version, with one runtime: another machine of a cluster may have others."""
        if not provenance:
            return
        known = self._base.execute("SELECT provenance FROM identities WHERE id = ?", (self._identity,)).fetchone()[0]
        if not known:
            self._base.execute("UPDATE identities SET provenance = ? WHERE id = ?", (provenance, self._identity))
        elif provenance != known:
            raise UsageError(
                f"{self.path}: its rows were made with {_difference(known, provenance)}: one report must not mix them; "
                "name --runtime, --device and --precision, see to it that all machines have the same version, or give "
                "--fresh"
            )

    def find(self, image_id: str, *, cells: bool = True) -> Record | None:
        """What is kept of a picture under this identity; without `cells` those are left on the disk.

        Raises:
            ImageError: the journal can't be read or is damaged.
        """
        columns = _COLUMNS if cells else _COLUMNS.replace("cells", "CASE WHEN cells IS NULL THEN NULL ELSE x'' END")
        with self._named():
            found = self._base.execute(
                f"SELECT {columns} FROM pictures WHERE identity = ? AND image = ?",
                (self._identity, os.fsencode(image_id)),
            ).fetchone()
        if found is None:
            return None
        return Record(found[0], found[1], bool(found[2]), *found[3:])

    def files_of(self, image_id: str) -> list[str]:
        """What was written for a picture under any identity, each as `Record.files`.

        Raises:
            ImageError: the journal can't be read or is damaged.
        """
        with self._named():
            found = self._base.execute("SELECT files FROM pictures WHERE image = ?", (os.fsencode(image_id),))
            return [files for (files,) in found]

    def all_files(self) -> list[str]:
        """What was written for any picture under any identity, each as `Record.files`.

        Raises:
            ImageError: the journal can't be read or is damaged.
        """
        with self._named():
            return [files for (files,) in self._base.execute("SELECT files FROM pictures")]

    def find_measure(self, image_id: str) -> Measure | None:
        """The red cells that are kept of a picture under this identity.

        Raises:
            ImageError: the journal can't be read or is damaged.
        """
        with self._named():
            found = self._base.execute(
                "SELECT sha256, width, height, diameters FROM measures WHERE identity = ? AND image = ?",
                (self._identity, os.fsencode(image_id)),
            ).fetchone()
        return None if found is None else Measure(*found)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._base.execute("COMMIT")
        except BaseException:
            if self._base.in_transaction:
                self._base.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
            if getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY":
                raise ImageError(
                    f"{self.path}: another program has it open; close it there, and run it again: what is finished is "
                    "kept"
                ) from error
            raise ImageError(
                f"{self.path}: the journal can't be used ({error}); free some space or check the permissions, and run "
                "it again: what is finished is kept; where the file is damaged, move it away"
            ) from error


def _remove(path: Path) -> None:
    try:
        for each in (path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")):
            each.unlink(missing_ok=True)
    except OSError as error:
        raise ImageError(f"{path}: can't be removed ({error.strerror}); check the permissions") from error


def _difference(before: str, now: str) -> str:
    """In what two provenances differ: the innermost values that are not the same."""
    old, new = (dict(_flat(json.loads(each))) for each in (before, now))
    keys = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    return ", ".join(f"{key} {str(old.get(key))[:200]}, this run with {str(new.get(key))[:200]}" for key in keys)


def _flat(values: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    """Values within values by their names, with colons between."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{under}{key}: ")
        else:
            yield f"{under}{key}", value
