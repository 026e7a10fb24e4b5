"""Which pictures a batch is about, their names in the report, and the slides they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from smearcount.batch.jobs import BatchJob
from smearcount.errors import SmearcountError, UsageError
from smearcount.images import list_folder
from smearcount.lists import read_lines
from smearcount.manifests import names_listed

__all__ = ["Listing", "Picture", "list_pictures", "slide_rule"]

SlideRule = Callable[[str], str]


@dataclass(frozen=True)
class Picture:
    """One row of the report to be.

    Attributes:
        path: the file.
        image_id: its name in the report, relative to the folder of the batch, with slashes.
        slide_id: the slide it belongs to; empty for none.
        fault: why it can't be analysed, where that is known without opening it; without its name.
    """

    path: Path
    image_id: str
    slide_id: str
    fault: str = ""


@dataclass
class Listing:
    """What was found.

    Attributes:
        pictures: in the order of the report.
        overlays: annotated pictures, sheets of cells and patches, of an earlier run, that were left out.
        others: files that are not named like pictures.
        unmatched: pictures left out by patterns, or listed twice.
        linked: folders that symbolic links reach a second time.
    """

    pictures: list[Picture] = field(default_factory=list)
    overlays: int = 0
    others: int = 0
    unmatched: int = 0
    linked: int = 0


def list_pictures(job: BatchJob) -> Listing:
    """The pictures of a folder, or those of a list.

    A sub-folder that can't be listed, or whose manifest of patches can't be read, is a row with the reason: nobody
    knows how many pictures it hides.

    Raises:
        UsageError: there is no picture, a pattern is wrong, or a listed picture lies outside the folder.
        ImageError: the folder can't be read.
    """
    slide_of = slide_rule(job.slides)
    listing = Listing()
    faults: dict[Path, str] = {}
    paths = _listed(job.folder, job.listed, listing) if job.listed else sorted(_walk(job, listing, faults))
    for path in paths:
        image_id = path.relative_to(job.folder).as_posix() + "/" * (path in faults)
        if path in faults or _matches(job, image_id):
            listing.pictures.append(Picture(path, image_id, slide_of(image_id), faults.get(path, "")))
        else:
            listing.unmatched += 1
    if not listing.pictures:
        raise UsageError(f"{job.listed or job.folder}: no pictures found{_hint(job, listing)}")
    return listing


def slide_rule(rule: str) -> SlideRule:
    """How a picture's slide follows from its name in the report.

    Args:
        rule: `folder` for the folder it is in, `none`, or a regular expression: its first group, found anywhere in
            the name, is the slide; a picture in which it is not found has none.

    Raises:
        UsageError: the expression is wrong, or has no group.
    """
    if rule == "none":
        return lambda image_id: ""
    if rule == "folder":
        return lambda image_id: image_id.rpartition("/")[0]
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise UsageError(f"--slides {rule!r}: no regular expression ({error})") from error
    if not pattern.groups:
        raise UsageError(f"--slides {rule!r}: expected folder, none, or a pattern with a group such as '(S[0-9]+)_'")

    def slide_of(image_id: str) -> str:
        found = pattern.search(image_id)
        return (found.group(1) or "") if found else ""

    return slide_of


def _matches(job: BatchJob, image_id: str) -> bool:
    """Patterns without a slash are about the file's name, others about all of it; `*` stands for slashes too."""

    def fits(pattern: str) -> bool:
        return fnmatchcase(image_id if "/" in pattern else image_id.rpartition("/")[2], pattern)

    return (not job.globs or any(map(fits, job.globs))) and not any(map(fits, job.excluded))


def _hint(job: BatchJob, listing: Listing) -> str:
    left_out = [f"{listing.overlays} outputs of earlier runs left out"] * bool(listing.overlays)
    left_out += [f"{listing.unmatched} left out by --glob and --exclude"] * bool(listing.unmatched)
    told = f" ({', '.join(left_out)})" if left_out else ""
    return told + ("" if job.recursive or job.listed else "; use --recursive for sub-folders")


def _listed(folder: Path, names: Path, listing: Listing) -> Iterator[Path]:
    """The pictures of a list file, in its order, each once."""
    inside = Path(os.path.normpath(folder.absolute()))
    seen: set[Path] = set()
    for line in read_lines(names, inside):
        path = Path(os.path.normpath(inside / line))
        below = _below(inside, path)
        if below is None:
            raise UsageError(f"{names}: {path} is not in {folder}; give a folder that holds all that is listed")
        if below in seen:
            listing.unmatched += 1
        else:
            seen.add(below)
            yield folder / below


def _below(folder: Path, path: Path) -> Path | None:
    """A path relative to a folder that it is in, by its name or, where links lead to one of them, in fact."""
    if path.is_relative_to(folder):
        return path.relative_to(folder)
    real = Path(os.path.realpath(folder))
    for each in (path, Path(os.path.realpath(path.parent), path.name)):
        if each.is_relative_to(real):
            return each.relative_to(real)
    return None


def _walk(job: BatchJob, listing: Listing, faults: dict[Path, str]) -> Iterator[Path]:
    """The pictures of a folder and those below it; of two ways to one folder only the first is gone."""
    seen: set[tuple[int, int]] = set()
    folders = [job.folder]
    while folders:
        folder = folders.pop()
        try:
            status = os.stat(folder)
            fresh = (status.st_dev, status.st_ino) not in seen
            seen.add((status.st_dev, status.st_ino))
            listing.linked += not fresh
            found = list_folder(folder, False) if fresh else None
            folders += _folders(folder) if fresh and job.recursive else []
            pictures = found.pictures if found else ()
            fields = pictures if folder == job.folder else _fields_of(folder, pictures)
        except (OSError, SmearcountError) as error:
            if folder == job.folder:
                raise
            told = str(error) if isinstance(error, SmearcountError) else _unlisted(error)
            faults[folder] = told.removeprefix(f"{folder}: ").removeprefix(f"{folder}{os.sep}")
            yield folder
            continue
        if found:
            listing.others += found.others
            listing.overlays += found.overlays + len(found.pictures) - len(fields)
            yield from fields


def _fields_of(folder: Path, pictures: Sequence[Path]) -> Sequence[Path]:
    """The pictures of a folder without those that are its own outputs: sheets of cells, and patches of `crop`."""
    if folder.name.endswith(".gallery"):
        return ()
    patches = names_listed(folder) if pictures else ()
    return [path for path in pictures if path.name not in patches]


def _folders(folder: Path) -> list[Path]:
    """The folders in a folder, last first."""
    with os.scandir(folder) as entries:
        return sorted((Path(entry.path) for entry in entries if _is_folder(entry)), reverse=True)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return not entry.name.startswith(".") and entry.is_dir()
    except OSError:  # a link to itself
        return False


def _unlisted(error: OSError) -> str:
    return f"can't be listed ({error.strerror}); check the permissions"
