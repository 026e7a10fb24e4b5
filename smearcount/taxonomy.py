"""Codes, kinds and display names of cells, from `configs/taxonomy.yaml` or a laboratory's own file."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, ValidationError, model_validator

from smearcount.config import Strict, read_model, shipped
from smearcount.errors import ConfigError
from smearcount.records import KINDS, UNCLASSIFIED, KindName

__all__ = ["Code", "Kind", "Taxonomy", "file_name_of", "load_taxonomy"]

Colour = Field(pattern="^#[0-9a-f]{6}$")


def file_name_of(code: str) -> str:
    """A code as part of a file name, without a dot: a laboratory's own may hold what a file name can't."""
    return quote(code, safe=" ").replace(".", "%2E")


def _plain(word: str) -> str:
    """A word in small letters without accents, with a blank for any punctuation."""
    bare = re.sub("[\u0300-\u036f]", "", unicodedata.normalize("NFKD", word.casefold()))
    return re.sub(r"[\s!-/:-@\[-`{-~]+", " ", bare).strip()


class Kind(Strict):
    """A kind of cell: display name and colour `#rrggbb`."""

    name: str
    colour: str = Colour


class Code(Strict):
    """A label a classifier can give, with the kind it belongs to, and the codes that were merged into it."""

    kind: KindName
    name: str
    colour: str = Colour
    synonyms: tuple[str, ...] = ()
    snomed_ct: str | None = None
    merges: tuple[str, ...] = ()


class Taxonomy(Strict):
    """All kinds and codes, in the order of the reports."""

    kinds: dict[KindName, Kind]
    codes: dict[str, Code]

    @model_validator(mode="after")
    def _no_double_names(self) -> Taxonomy:
        seen: dict[str, str] = {}
        for code, entry in self.codes.items():
            for word in (code, *entry.synonyms, entry.name):
                if seen.setdefault(_plain(word), code) != code:
                    raise ValueError(f"{word!r} stands for both {seen[_plain(word)]} and {code}")
        return self

    @model_validator(mode="after")
    def _has_what_the_counts_rely_on(self) -> Taxonomy:
        missing = [kind for kind in KINDS if kind not in self.kinds]
        if missing:
            raise ValueError(f"kinds: missing {', '.join(missing)}")
        if "platelet" not in self.codes_of("platelet"):
            raise ValueError("codes: platelet of kind platelet is missing: a platelet is named without a classifier")
        if UNCLASSIFIED in self.codes:
            raise ValueError(f"codes: {UNCLASSIFIED} is no code but the absence of one")
        return self

    @cached_property
    def kind_of(self) -> dict[str, str]:
        """Kind of each code."""
        return {code: entry.kind for code, entry in self.codes.items()}

    def code_of(self, name: str) -> str | None:
        """The code that goes by a name: a code, a synonym or a display name, however it is written; None without one.

        Case, accents, punctuation and a plural `s` make no difference.
        """
        plain = _plain(name)
        return self._words.get(plain) or self._words.get(plain.removesuffix("s"))

    def nearest(self, name: str) -> str | None:
        """The code that goes by the word most like an unknown one; None where none is like it."""
        found = difflib.get_close_matches(_plain(name), self._words, 1)
        return self._words[found[0]] if found else None

    def as_codes(self, names: Iterable[str]) -> tuple[str, ...]:
        """The codes that go by some names, each once; a name that is unknown stays as it is, for others to refuse."""
        return tuple(dict.fromkeys(self.code_of(name) or name for name in names))

    @cached_property
    def _words(self) -> dict[str, str]:
        """The code of every word it goes by."""
        return {_plain(word): code for code, each in self.codes.items() for word in (code, *each.synonyms, each.name)}

    def codes_of(self, kind: str) -> tuple[str, ...]:
        """Codes of one kind, in order."""
        return tuple(code for code, entry in self.codes.items() if entry.kind == kind)

    def merged(self, merge: Mapping[str, Sequence[str]]) -> Taxonomy:
        """With a code more for each new one of merged codes, of their kind and in the colour of the first of them.

        Raises:
            ConfigError: codes of several kinds are merged, or a new one is called as something else is.
        """
        added = {}
        for new, olds in merge.items():
            if len({self.kind_of[old] for old in olds}) > 1:
                raise ConfigError(f"merge: {new}: {', '.join(olds)} are of different kinds; merge codes of one kind")
            name = new.replace("_", " ").capitalize()
            first = self.codes[olds[0]]
            added[new] = Code(kind=first.kind, name=name, colour=first.colour, merges=tuple(olds))
        try:
            return Taxonomy(kinds=self.kinds, codes={**self.codes, **added})
        except ValidationError as error:
            fault = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ConfigError(f"merge: {fault}; choose another name") from error


def load_taxonomy(path: Path | None = None) -> Taxonomy:
    """The shipped taxonomy, or the file given, as it is now.

    Raises:
        ConfigError: the file is missing or malformed.
    """
    file = path or shipped("configs") / "taxonomy.yaml"
    return _read(file, file.read_bytes() if file.is_file() else b"")


@lru_cache(maxsize=8)
def _read(file: Path, content: bytes) -> Taxonomy:
    """A taxonomy, read once for each content of its file."""
    return read_model(Taxonomy, file)
