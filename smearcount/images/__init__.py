"""Pictures in and out: the only place of smearcount where picture files are opened, and those of results written.

`open_image` gives an `ImageSource`, whatever the format; `read` on it gives rectangles of RGB pixels. Formats are
told apart by their first bytes, never by their names; which library reads which of them is said in `slides.py` and
`opening.py`. Only the slides that `bench` makes up, tile by tile, are written elsewhere: in `bench/mosaics.py`.
"""

from __future__ import annotations

from smearcount.images.machine import is_of_machine, lack_of_memory
from smearcount.images.opening import FolderListing, find_images, list_folder, open_image
from smearcount.images.slides import State, content_sha256, unchanged
from smearcount.images.source import (
    ArraySource,
    ImageSource,
    PartSource,
    PixelSource,
    ReadLimits,
    file_sha256,
    peek,
    with_notes,
)
from smearcount.images.writing import (
    check_target,
    encoded,
    grow_text,
    make_folder,
    part_key,
    partial_path,
    real_path,
    refuse_input,
    refuse_inputs,
    replacing,
    through_jpeg,
    write_bytes_atomic,
    write_overlay,
    write_picture,
    write_text_atomic,
)

__all__ = [
    "ArraySource",
    "FolderListing",
    "ImageSource",
    "PartSource",
    "PixelSource",
    "ReadLimits",
    "State",
    "check_target",
    "content_sha256",
    "encoded",
    "file_sha256",
    "find_images",
    "grow_text",
    "is_of_machine",
    "lack_of_memory",
    "list_folder",
    "make_folder",
    "open_image",
    "part_key",
    "partial_path",
    "peek",
    "real_path",
    "refuse_input",
    "refuse_inputs",
    "replacing",
    "through_jpeg",
    "unchanged",
    "with_notes",
    "write_bytes_atomic",
    "write_overlay",
    "write_picture",
    "write_text_atomic",
]
