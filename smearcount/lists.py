"""Lists of pictures: a text file, one path a line, as any editor or shell of any system writes it."""

from __future__ import annotations

import codecs
import os
import re
from pathlib import Path

from smearcount.errors import UsageError

__all__ = ["read_lines"]


def read_lines(path: Path, folder: Path) -> list[str]:
    """The lines of a list that are not empty, without blanks and double quotes around them.

    A line that begins with `#` is a comment, unless there is such a file in the folder that the lines are relative to.

    UTF-8 or any other bytes that can be in a file's name, or UTF-16 with a byte order mark, as PowerShell writes it.

    Raises:
        UsageError: the file can't be read, or is no text.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: no list of pictures: it can't be read ({error.strerror}); check the path") from error
    try:
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16") if wide else os.fsdecode(data.removeprefix(codecs.BOM_UTF8))
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: begins as UTF-16 text, but is none ({error.reason}); save it as UTF-8") from error
    if "\0" in text:
        raise UsageError(f"{path}: no list of pictures: it has a zero byte; save it as text in UTF-8")
    # Unlike str.splitlines, which breaks names at characters that they can have.
    lines = (line.strip(" \t\v\f") for line in re.split("[\r\n]+", text))
    unquoted = (line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line for line in lines)
    return [line for line in unquoted if line and (line[0] != "#" or os.path.lexists(folder / line))]
