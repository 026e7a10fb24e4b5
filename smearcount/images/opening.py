"""Which reader a file belongs to, by its first bytes; and the pictures of a folder."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from smearcount.errors import ImageError
from smearcount.images.choice import PageChoice
from smearcount.images.machine import faults_named
from smearcount.images.raster import open_raster
from smearcount.images.slides import is_mirax, open_slide, slide_vendor
from smearcount.images.source import DEFAULT_LIMITS, ImageSource, ReadLimits
from smearcount.images.tiff import open_tiff, scanner_of
from smearcount.output_names import OVERLAYS

__all__ = [
    "SUFFIXES",
    "FolderListing",
    "find_images",
    "first_bytes",
    "kind_of_file",
    "list_folder",
    "open_image",
    "unnamed_pictures",
]

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff", ".btf", ".tf2", ".tf8")
    + (".svs", ".ndpi", ".mrxs", ".scn", ".bif")
)
"""Names that `find_images` takes for pictures; whether they are is seen when they are opened."""

_RAW = dict.fromkeys(
    (".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw"), "a camera's raw file"
)

_NAMES = _RAW | {
    **dict.fromkeys((".heic", ".heif", ".hif"), "a HEIC photograph"),
    **dict.fromkeys((".jp2", ".j2k", ".jpf", ".jpx"), "a JPEG 2000 picture"),
    **{".avif": "an AVIF picture", ".gif": "a GIF picture", ".jxl": "a JPEG XL picture", ".pdf": "a PDF document"},
    **{".czi": "a Zeiss CZI file", ".nd2": "a Nikon ND2 file", ".lif": "a Leica LIF file"},
    **{".vsi": "an Olympus VSI slide", ".oib": "an Olympus OIB file"},
    **{".dcm": "a DICOM file", ".psd": "a Photoshop document"},
}
"""Pictures of types that are not read: in a folder they are failures with a reason, not files of no concern."""

_PREVIEWS = frozenset(_RAW) | {".vsi"}
"""Types whose first bytes are those of a TIFF or JPEG, which holds no more than a preview or an overview."""

_PICTURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
)

_OTHERS = (
    (b"%PDF", "a PDF document"),
    (b"GIF8", "a GIF picture"),
    (b"\0\0\0\x0cjP  ", "a JPEG 2000 picture"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (b"\xff\x0a", "a JPEG XL picture"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1aE\xdf\xa3", "a video"),
    (b"ZISRAWFILE", "a Zeiss CZI file"),
    (b"\xda\xce\xbe\x0a", "a Nikon ND2 file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML text or SVG drawing"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
)

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"mif1", b"msf1"), "a HEIC photograph"),
    **{b"avif": "an AVIF picture", b"crx ": "a camera's raw file"},
}
"""What an ISO base media file is by its brand (ISO/IEC 14496-12, 4.3)."""

_REMEDY = "expected a JPEG, PNG, TIFF, BMP or WebP picture or a slide: export it as one of these"


def open_image(
    path: Path,
    limits: ReadLimits = DEFAULT_LIMITS,
    page: int | None = None,
    *,
    level: int | None = None,
    channel: int | None = None,
) -> ImageSource:
    """Open a picture of any supported format, told by its content.

    Args:
        path: JPEG, PNG, TIFF, BMP or WebP file, or a slide that OpenSlide reads.
        limits: what is refused before decoding.
        page: which page of a multi-page TIFF, from 1; None goes by rule: see `PageChoice`.
        level: which level of a pyramid, from 0; None for the full resolution.
        channel: which channel to show grey, from 1; None for all colours.

    Raises:
        ImageError: names the file, what is wrong with it, and what to do.
    """
    path, choice = Path(path), PageChoice(page, level, channel)
    with faults_named(path):
        return _opened(path, limits, choice)


def _opened(path: Path, limits: ReadLimits, choice: PageChoice) -> ImageSource:
    start = first_bytes(path)
    kind, suffix = kind_of_file(start), path.suffix.lower()
    if suffix in _PREVIEWS:
        raise ImageError(f"{path}: {_NAMES[suffix]}, which is not read; {_REMEDY}")
    if is_mirax(path):
        return open_slide(path, limits, choice, "MIRAX")
    if not kind:
        raise ImageError(f"{path}: {_other(start, suffix)}; {_REMEDY}")
    if kind == "TIFF":
        return _open_tiff(path, limits, choice)
    choice.refuse(path, kind, "page", "level", "channel")
    _check_bytes(path, path.stat().st_size, limits)
    return open_raster(path, kind, path.read_bytes(), limits)


def _open_tiff(path: Path, limits: ReadLimits, choice: PageChoice) -> ImageSource:
    """A TIFF by the rule of `slides.py`: a scanner's own belongs to OpenSlide, unless a page of it was chosen."""
    make = scanner_of(path) if choice.page is None else ""
    if make and slide_vendor(path, make) not in ("", "generic-tiff"):
        return open_slide(path, limits, choice, make)
    return open_tiff(path, limits, choice)


@dataclass(frozen=True)
class FolderListing:
    """What is in a folder; hidden files and folders are not.

    Attributes:
        pictures: files named like pictures, sorted; those of a type that is not read as well.
        overlays: number of annotated pictures, of an earlier run, that were left out.
        others: number of files that are not named like pictures.
    """

    pictures: tuple[Path, ...]
    overlays: int
    others: int


def find_images(folder: Path, recursive: bool) -> list[Path]:
    """The files of a folder that are named like pictures of a type that is read, sorted; no overlays.

    Raises:
        ImageError: the folder is missing or can't be listed.
    """
    return [path for path in list_folder(folder, recursive).pictures if path.suffix.lower() in SUFFIXES]


def list_folder(folder: Path, recursive: bool) -> FolderListing:
    """What a folder holds; files named `*.overlay.jpg`, `.png` or `.tif` are left out.

    A folder that symbolic links reach twice is listed once. A link to nowhere is listed: opening it says so.

    Raises:
        ImageError: the folder is missing or can't be listed.
    """
    visible = _visible_files(folder, recursive)
    pictures = [path for path in visible if _named(path)]
    taken = [path for path in pictures if not path.name.lower().endswith(OVERLAYS)]
    return FolderListing(tuple(taken), len(pictures) - len(taken), len(visible) - len(pictures))


def unnamed_pictures(folder: Path) -> list[tuple[Path, str]]:
    """The files of a folder and its sub-folders that are pictures by their first bytes, but not named like any.

    Returns:
        Each with the name of its format.

    Raises:
        ImageError: the folder is missing or can't be listed.
    """
    kinds = ((path, _kind_or_none(path)) for path in _visible_files(folder, True) if not _named(path))
    return [(path, kind) for path, kind in kinds if kind]


def _kind_or_none(path: Path) -> str:
    try:
        return kind_of_file(first_bytes(path))
    except ImageError:
        return ""


def _named(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES or path.suffix.lower() in _NAMES


def _visible_files(folder: Path, recursive: bool) -> list[Path]:
    if not folder.is_dir():
        raise ImageError(f"{folder}: no such folder; check the path")
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> None:
        raise ImageError(f"{error.filename}: can't be listed ({error.strerror}); check the permissions") from error

    for root, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        status = os.stat(root)
        fresh = (status.st_dev, status.st_ino) not in seen
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if recursive and fresh and not name.startswith("."))
        found += (Path(root, name) for name in names if fresh and not name.startswith("."))
    return sorted(found)


def _check_bytes(path: Path, file_bytes: int, limits: ReadLimits) -> None:
    # No picture within the limit takes more than 8 bytes a pixel, so a larger file need not be read to be refused.
    if file_bytes > limits.max_megapixels * 8e6 + 1e8:
        raise ImageError(
            f"{path}: {file_bytes / 1e6:.0f} MB are more than a picture of {limits.max_megapixels:g} megapixels can "
            "have; allow it with --max-megapixels N"
        )


def first_bytes(path: Path) -> bytes:
    """The first 132 bytes of a file, by which its format is told.

    Raises:
        ImageError: there is no such file, or it is empty or can't be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{path}: a folder, not a picture; give the pictures in it, or use batch")
        if not stat.S_ISREG(mode):
            raise ImageError(f"{path}: neither a file nor a folder; give a picture file")
        with path.open("rb", buffering=0) as file:
            start = file.read(132)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the path") from error
    except PermissionError as error:
        raise ImageError(f"{path}: no permission to read it; change its permissions (chmod +r)") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path!s}: can't be read ({error}); check the path and the disk") from error
    if not start:
        raise ImageError(f"{path}: the file is empty; copy it again")
    return start


def kind_of_file(start: bytes) -> str:
    """Name of the picture format that a file begins as; empty for any other."""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((kind for signature, kind in _PICTURES if start.startswith(signature)), "")


def _other(start: bytes, suffix: str) -> str:
    """What a file is instead of a picture that can be read, by its first bytes, else by its name."""
    found = _known_content(start)
    if found:
        return f"not a picture but {found}"
    if suffix in _NAMES:
        return f"{_NAMES[suffix]}, which is not read"
    text = all(byte >= 32 or byte in b"\t\r\n\f\x1b" for byte in start)
    return f"not a picture but {'text' if text else 'data of an unknown format'}"


def _known_content(start: bytes) -> str:
    if start[4:8] == b"ftyp":
        return _BRANDS.get(start[8:12], "a video or HEIC photograph")
    if start[128:132] == b"DICM":
        return "a DICOM file"
    if start[:4] == b"RIFF":
        return "a video or sound"
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    for signature, name in _OTHERS:
        if start.startswith(signature) or text.startswith(signature):
            return name
    return ""
