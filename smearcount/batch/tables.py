"""Tables of any length by file ending: CSV, which is the reference, Parquet and Excel with typed columns."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from smearcount.errors import ImageError
from smearcount.images import encoded, replacing
from smearcount.report import Row, to_csv

__all__ = ["ENDINGS", "number_type", "write_table"]

_ROWS = 2000
_SHEET_ROWS = 1_048_576
"""Rows of a sheet of Excel (ECMA-376 part 1, 18.3.1.73, as Excel reads it)."""

_NO_DATE = (1980, 1, 1, 0, 0, 0)
"""The first moment that a ZIP archive can name."""

_ENDLESS = (float("inf"), float("-inf"))

_WHOLE = ("width", "height", "cell_id", "at_edge", "counted", "images", "failed", "warned", "copies")
_REAL = (
    *("um_per_px", "counted_area_mm2", "score", "label_score", "runner_up_score", "diameter_um"),
    *("x_min", "y_min", "x_max", "y_max", "nrbc_per_100_wbc", "platelet_per_1000_rbc"),
)


def number_type(column: str) -> type:
    """Whether the values of a column are `int`, `float` or `str`; those without a value are empty."""
    if column in _WHOLE or column.startswith(("n_", "count_")):
        return int
    return float if column in _REAL or column.startswith("pct_") or column.endswith(("_low", "_high")) else str


class _TooLongError(Exception):
    """A format can't hold so many rows."""


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as the ending of the path says, a few at a time; the file is whole or absent.

    Raises:
        ImageError: it can't be written, or has more rows than the format takes.
    """
    with replacing(path, durable=True) as temporary:
        try:
            ENDINGS[path.suffix.lower()](temporary, columns, _chunks(rows))
        except _TooLongError as error:
            raise ImageError(f"{path}: {error}") from error


def _chunks(rows: Iterable[Row]) -> Iterator[list[Row]]:
    left = iter(rows)
    while chunk := list(islice(left, _ROWS)):
        yield chunk


def _csv(path: Path, columns: Sequence[str], chunks: Iterable[list[Row]]) -> None:
    with path.open("xb") as file:
        file.write(encoded(to_csv(columns, [])))
        for rows in chunks:
            file.write(encoded(to_csv(columns, rows, header=False)))


def _parquet(path: Path, columns: Sequence[str], chunks: Iterable[list[Row]]) -> None:
    import pyarrow
    from pyarrow import parquet

    types = {int: pyarrow.int64(), float: pyarrow.float64(), str: pyarrow.string()}
    schema = pyarrow.schema([(column, types[number_type(column)]) for column in columns])
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in chunks:
            values = {column: [_value(column, row[column]) for row in rows] for column in columns}
            writer.write_table(pyarrow.table(values, schema))


def _xlsx(path: Path, columns: Sequence[str], chunks: Iterable[list[Row]]) -> None:
    from openpyxl import Workbook
    from openpyxl.writer.excel import ExcelWriter

    book = Workbook(write_only=True)
    sheet = book.create_sheet("smearcount")
    try:
        _fill(sheet, columns, chunks)
    finally:
        sheet.close()
    book.properties.created = book.properties.modified = datetime(*_NO_DATE)
    with _Undated(path, "x") as archive:
        ExcelWriter(book, archive).save()


class _Undated(ZipFile):
    """An archive in which nothing says when it was written, so that the same content is the same bytes."""

    def writestr(self, name: Any, data: Any, *_: Any) -> None:
        """Add a file with this content."""
        with self.open(_undated(name), "w") as target:
            target.write(data.encode() if isinstance(data, str) else data)

    def write(self, filename: Any, arcname: Any = None, *_: Any) -> None:
        """Add a file of the disk."""
        with open(filename, "rb") as source, self.open(_undated(arcname), "w", force_zip64=True) as target:
            shutil.copyfileobj(source, target)


def _undated(name: str) -> ZipInfo:
    entry = ZipInfo(name, _NO_DATE)
    entry.compress_type = ZIP_DEFLATED
    return entry


def _fill(sheet: Any, columns: Sequence[str], chunks: Iterable[list[Row]]) -> None:
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    illegal = re.compile(rf"{ILLEGAL_CHARACTERS_RE.pattern}|\r")  # which a sheet would give back as a line feed
    sheet.append(list(columns))
    written = 1
    for rows in chunks:
        written += len(rows)
        if written > _SHEET_ROWS:
            raise _TooLongError(f"a sheet of Excel has {_SHEET_ROWS:,} rows, which are too few; give .csv or .parquet")
        for row in rows:
            values = [_value(column, row[column]) for column in columns]
            words = [illegal.sub("?", each) if isinstance(each, str) else each for each in values]
            cells = [WriteOnlyCell(sheet, str(each) if each in _ENDLESS else each) for each in words]
            for cell in cells:
                # A file name that begins with = is no formula, and one like #REF! no error.
                cell.data_type = "s" if cell.data_type in ("f", "e") else cell.data_type
            sheet.append(cells)


ENDINGS: dict[str, Callable[[Path, Sequence[str], Iterable[list[Row]]], None]] = {
    ".csv": _csv,
    ".parquet": _parquet,
    ".xlsx": _xlsx,
}
"""What writes the tables of each ending."""


def _value(column: str, text: str | int) -> Any:
    kind = number_type(column)
    if kind is str:
        return encoded(str(text)).decode()
    return None if text == "" else kind(text)
