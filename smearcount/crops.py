"""`smearcount crop`: the 452 x 452 px patch of every cell as a PNG, and a manifest that lists them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from smearcount.batch import Failure, analyze_each
from smearcount.errors import UsageError
from smearcount.images import check_target, partial_path, refuse_inputs, write_picture, write_text_atomic
from smearcount.images.locks import in_turn
from smearcount.manifests import MANIFEST, MANIFEST_COLUMNS, read_manifest
from smearcount.output_names import numbered, shortened
from smearcount.pipeline import Analysis, Pipeline
from smearcount.progress import Progress
from smearcount.records import KINDS, UNCLASSIFIED
from smearcount.report import Row, cell_rows, to_csv
from smearcount.taxonomy import Taxonomy, file_name_of

__all__ = ["Cropped", "check_crops", "write_crops"]


@dataclass(frozen=True)
class Cropped:
    """What a run of `smearcount crop` came to.

    Attributes:
        written: number of patches.
        failed: pictures that could not be read, and why.
        renamed: pictures whose patches begin otherwise than their file name, since another picture has that, and how.
    """

    written: int
    failed: tuple[tuple[Path, str], ...]
    renamed: tuple[tuple[Path, str], ...]


def check_crops(images: Iterable[Path], out: Path, inputs: Iterable[Path] = ()) -> None:
    """See, before the models are loaded, that no patch and no manifest replaces anything that is read.

    Args:
        images: pictures to cut.
        out: folder of the patches.
        inputs: other files that the run reads.

    Raises:
        UsageError: one would.
    """
    listed = list(images)
    stems = "|".join(re.escape(_beginning(path)) for path in listed)
    own = re.compile(rf"(?:{stems})(?:-\d+)?_\d{{5,}}_.+\.png|{MANIFEST}|{partial_path(Path(MANIFEST))}", re.IGNORECASE)
    for path in (*listed, *inputs):
        for each in (path, Path(os.path.realpath(path))):
            if os.path.realpath(each.parent) == os.path.realpath(out) and own.fullmatch(each.name):
                raise UsageError(f"{path}: is read by this run, which may write it; give --out another folder")
    refuse_inputs([out / MANIFEST], (), [*listed, *inputs])


def write_crops(pipeline: Pipeline, images: Iterable[Path], out: Path, progress: Progress = iter) -> Cropped:
    """Cut every cell of every picture out.

    Patches of other pictures that lie in the folder already stay, even of one that has the same name; those of the same
    name and content are replaced. The manifest lists all that are there, also after a run that was stopped.

    Raises:
        ImageError: the folder can't be written.
        UsageError: it holds another file of the name of the manifest, or another run is writing to it.
    """
    with in_turn(check_target(out / MANIFEST)):
        return _cropped(pipeline, list(dict.fromkeys(images)), out, progress)


def _cropped(pipeline: Pipeline, listed: Sequence[Path], out: Path, progress: Progress) -> Cropped:
    """What `write_crops` does while no other run writes to the folder."""
    before = _listed(out / MANIFEST) | _listed(partial_path(out / MANIFEST))
    known = {stem.casefold(): stem for stem in before}
    content = {name: before[stem][0]["image_sha256"] for name, stem in known.items()}
    stems: dict[Path, str] = {}
    taken: set[str] = set()
    done: dict[str, str] = {}
    written: set[str] = set()
    failed: list[tuple[Path, str]] = []

    def free(stem: str, sha256: str) -> bool:
        # Files whose names differ in case alone are one file on Windows and macOS.
        name = stem.casefold()
        return name not in taken and content.get(name, sha256) == sha256

    def finish(path: Path, analysis: Analysis) -> None:
        sha256 = analysis.result.image_sha256
        wanted = next(each for each in numbered(_beginning(path)) if free(each, sha256))
        stems[path] = stem = known.get(wanted.casefold(), wanted)
        taken.add(stem.casefold())
        rows = _write_patches(analysis, out, stem)
        done[stem] = to_csv(MANIFEST_COLUMNS, rows, header=False)
        written.update(str(row["file"]) for row in rows)

    try:
        for path, outcome in analyze_each(pipeline, progress(listed), lambda path: (path.name, ""), finish):
            if isinstance(outcome, Failure):
                failed.append((path, outcome.reason))
    finally:
        # Also where the run is stopped.
        _settle(out, pipeline.taxonomy, before, done, written)
    renamed = [(path, stem) for path, stem in stems.items() if stem.casefold() != _beginning(path).casefold()]
    return Cropped(len(written), tuple(failed), tuple(renamed))


def _beginning(picture: Path) -> str:
    """What the names of the patches of a picture begin with, in characters that the manifest can hold."""
    return shortened(picture.name.encode("utf-8", "backslashreplace").decode())


def _settle(
    out: Path, taxonomy: Taxonomy, before: Mapping[str, list[Row]], done: Mapping[str, str], written: Set[str]
) -> None:
    """Write the manifest of all that is there, then remove what an earlier run has left of pictures done anew.

    Args:
        out: folder of the patches.
        taxonomy: of the codes in their names.
        before: the rows of earlier runs by what the names of their patches begin with.
        done: those of this run, as CSV.
        written: names of the patches of this run.
    """
    untouched = (row for stem, rows in before.items() if stem not in done for row in rows)
    kept = [row for row in untouched if (out / str(row["file"])).is_file()]
    head, others = to_csv(MANIFEST_COLUMNS, []), to_csv(MANIFEST_COLUMNS, kept, header=False)
    write_text_atomic(out / MANIFEST, "".join((head, *done.values(), others)))
    partial_path(out / MANIFEST).unlink(missing_ok=True)
    old = {str(row["file"]) for stem in done for row in before.get(stem, ())}
    # A run that was killed has left patches that no manifest lists.
    old |= {name for name, stem in _patches_in(out, taxonomy) if stem in done}
    for name in old - written - {row["file"] for row in kept}:
        (out / name).unlink(missing_ok=True)


def _patches_in(folder: Path, taxonomy: Taxonomy) -> Iterator[tuple[str, str]]:
    """The patches in a folder, listed or not, with what their names begin with."""
    kinds, codes = "|".join(KINDS), "|".join(re.escape(file_name_of(code)) for code in (*taxonomy.codes, UNCLASSIFIED))
    patch = re.compile(rf"(.+)_\d{{5,}}_(?:{kinds})_(?:{codes})\.png", re.DOTALL)
    matches = map(patch.fullmatch, (path.name for path in folder.iterdir()))
    return ((match[0], match[1]) for match in matches if match)


def _listed(manifest: Path) -> dict[str, list[Row]]:
    """The rows of a manifest by the stem of their files; nothing where there is none."""
    found = read_manifest(manifest)
    if found is None and not manifest.exists():
        return {}
    if found is None or any(tuple(row) != MANIFEST_COLUMNS for row in found):
        raise UsageError(f"{manifest}: no manifest of this version of `smearcount crop`; give another folder")
    rows: dict[str, list[Row]] = {}
    for row in found:
        stem = row["file"].rpartition(f"_{row['cell_id'].zfill(5)}_{row['kind']}_")[0]
        rows.setdefault(stem, []).append(dict(row))
    return rows


def _write_patches(analysis: Analysis, out: Path, stem: str) -> list[Row]:
    """The rows of the manifest for one picture, whose patches take their places when the last of them is written."""
    rows: list[Row] = []
    result = analysis.result
    found_as = result.detections.kinds if result.found_as is None else result.found_as
    with TemporaryDirectory(dir=out, prefix=".", suffix=".part") as part:
        for patch, row, found in zip(analysis.patches(), cell_rows(result), found_as.tolist(), strict=True):
            name = f"{stem}_{patch.cell_id:05d}_{row['kind']}_{file_name_of(str(row['label']))}.png"
            write_picture(Path(part, name), patch.pixels)
            size = {"side_um": f"{patch.side_um:g}", "um_per_px": f"{patch.um_per_px:.6g}"}
            of = {"filled": f"{patch.filled:.4f}", "image_sha256": result.image_sha256}
            rows.append({"file": name, **row, "found_as": found, **size, **of})
        for row in rows:
            os.replace(Path(part, str(row["file"])), out / str(row["file"]))
    return rows
