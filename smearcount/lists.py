"""Lists of pictures: a text file, one path a line, as any editor or shell of any system writes it."""

from __future__ import annotations

import codecs
from pathlib import Path

from smearcount.errors import UsageError

__all__ = ["read_lines"]

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))


def read_lines(path: Path) -> list[str]:
    """The lines of a list that are not empty, without blanks and quotes around them.

    UTF-8, or UTF-16 with a byte order mark, as PowerShell writes it.

    Raises:
        UsageError: the file can't be read, or is no text.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: no list of pictures, one a line ({error})") from error
    if "\0" in text:
        raise UsageError(f"{path}: no list of pictures, one a line (it holds binary data); save it as UTF-8 text")
    stripped = (line.strip() for line in text.splitlines())
    unquoted = (line[1:-1] if len(line) > 1 and line[0] == line[-1] == '"' else line for line in stripped)
    return [line for line in unquoted if line]
