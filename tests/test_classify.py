"""Ready-made pictures of single cells: what each is shown as, its row, and classes from a few examples."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import RED, Draw

from smearcount.arrays import Pixels
from smearcount.cards import Model, find_model
from smearcount.classifier import Classifier
from smearcount.classify import (
    ClassifyJob,
    ClassifyOutcome,
    ClassifyRun,
    _row,
    _show,
    label_columns,
    listed_pictures,
    name_files,
    run_classify,
)
from smearcount.config import Settings
from smearcount.crops import write_crops
from smearcount.detector import Detector
from smearcount.errors import ImageError, ModelError, UsageError
from smearcount.images import ArraySource, open_image, write_picture
from smearcount.manifests import ListedPatch, listed_patches
from smearcount.patches import PatchSizes
from smearcount.pipeline import Pipeline
from smearcount.runtimes import RuntimeChoice
from smearcount.training.packaging import update_card

Run = Callable[..., tuple[ClassifyOutcome, list[dict[str, str]]]]

PATCH_PX = 75


@pytest.fixture
def classify(naming_models: Path, tmp_path: Path) -> Run:
    """Name pictures by the red classifier; the outcome, and the rows that were written."""

    def run(*paths: Path, model: str = "red-discs", **flags: Any) -> tuple[ClassifyOutcome, list[dict[str, str]]]:
        out = tmp_path / "labels.csv"
        find, examples = flags.pop("find", False), flags.pop("examples", None)
        asked = ClassifyRun(str(naming_models / model), Settings(**flags), find, examples)
        outcome = run_classify(asked, paths, out)
        return outcome, list(csv.DictReader(out.read_text().splitlines()))

    return run


@pytest.fixture
def red(naming_models: Path) -> Classifier:
    return Classifier(find_model("red-discs", naming_models), RuntimeChoice())


def cell(draw: Draw, code: str, diameter: float = 46, side: int = PATCH_PX) -> Pixels:
    """A disc in the middle of a square picture; at 75 px it is a whole window of the classifier."""
    pixels: Pixels = draw((side, side), np.array([[side / 2, side / 2, diameter]]), (code,)).pixels
    return pixels


def tinted(draw: Draw, blue: int, diameter: float = 46) -> Pixels:
    """A disc of another blue than those of the codes."""
    pixels = cell(draw, "normocyte", diameter)
    pixels[..., 2] = np.where(pixels[..., 1] < 150, blue, pixels[..., 2])
    return pixels


def write(folder: Path, **pictures: Pixels) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pixels in pictures.items():
        write_picture(folder / f"{name}.png", pixels)
    return folder


def probs_of(row: dict[str, str], codes: tuple[str, ...] = RED) -> list[float]:
    return [float(row[f"p_{code}"]) for code in codes]


def test_the_columns_are_fixed(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"))
    _, (row,) = classify(folder)
    head = ("image", "status", "error", "label", "score", "runner_up", "runner_up_score")
    head += ("um_per_px", "um_per_px_source", "reading")
    assert tuple(row) == label_columns(RED) == (*head, "p_normocyte", "p_spherocyte", "p_target_cell")
    assert (row["image"], row["status"], row["error"]) == (str(folder / "a.png"), "ok", "")


def test_cells_get_their_names_with_all_probabilities(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    drawn = {f"{code}{size}": cell(draw_discs, code, size) for code in RED for size in (40, 46, 53)}
    outcome, rows = classify(write(tmp_path / "in", **drawn))
    assert (outcome.named, outcome.failed, outcome.remarks) == (9, (), ())
    assert [Path(row["image"]).stem for row in rows] == sorted(drawn)
    for row in rows:
        assert row["label"] == Path(row["image"]).stem[:-2]
        probs = probs_of(row)
        assert sum(probs) == pytest.approx(1, abs=2e-4)
        first, second = sorted(probs, reverse=True)[:2]
        assert (float(row["score"]), float(row["runner_up_score"])) == (first, second)
        assert row["label"] == RED[probs.index(first)] != row["runner_up"]


@pytest.mark.parametrize("side", [40, 75, 200, 452])
def test_a_picture_of_any_size_is_the_window(classify: Run, draw_discs: Draw, tmp_path: Path, side: int) -> None:
    pictures = {code: cell(draw_discs, code, 46 / 75 * side, side) for code in RED}
    _, rows = classify(write(tmp_path / "in", **pictures))
    assert [row["label"] for row in rows] == sorted(RED)


def test_failures_are_rows_and_cost_only_themselves(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"), z=cell(draw_discs, "target_cell"))
    (folder / "b.png").write_bytes(b"no picture at all")
    (folder / "c.png").write_bytes((folder / "a.png").read_bytes()[:60])
    write_picture(folder / "d.png", np.zeros((7, 9, 3), np.uint8))
    outcome, rows = classify(folder, folder / "absent.png")
    assert [(Path(row["image"]).name, row["status"]) for row in rows] == [
        *(("a.png", "ok"), ("b.png", "failed"), ("c.png", "failed"), ("d.png", "failed"), ("z.png", "ok")),
        ("absent.png", "failed"),
    ]
    assert (outcome.named, len(outcome.failed)) == (2, 4)
    for row in rows:
        if row["status"] == "failed":
            assert Path(row["image"]).name in row["error"]
            assert (row["image"], row["error"]) in outcome.failed
            assert not row["label"] + row["score"] + row["p_normocyte"]
        else:
            assert row["error"] == ""


def test_below_the_threshold_a_cell_is_unclassified(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", **{f"b{blue:03d}": tinted(draw_discs, blue) for blue in range(10, 240, 10)})
    unnamed = []
    for threshold in (0.0, 0.5, 0.9, 0.98, 1.0):
        _, rows = classify(folder, min_label_score=threshold)
        unsure = [row["label"] == "unclassified" for row in rows]
        for row, without in zip(rows, unsure, strict=True):
            if abs(float(row["score"]) - threshold) > 1e-4:
                assert without == (float(row["score"]) < threshold)
        unnamed.append({row["image"] for row, without in zip(rows, unsure, strict=True) if without})
    assert unnamed == sorted(unnamed, key=len)
    assert all(few <= more for few, more in zip(unnamed, unnamed[1:], strict=False))
    assert (len(unnamed[0]), len(unnamed[-1])) == (0, 23)


def test_pictures_folders_and_lists(draw_discs: Draw, tmp_path: Path) -> None:
    picture = cell(draw_discs, "normocyte")
    folder = write(tmp_path / "in", b=picture, a=picture)
    write(folder / "deeper", c=picture)
    (folder / "notes.csv").write_text("no picture")
    listing = folder / "list.txt"
    listing.write_text("\ndeeper/c.png\n  b.png  \n" + str(folder / "a.png") + "\nabsent.png\n")
    a, b, c = folder / "a.png", folder / "b.png", folder / "deeper" / "c.png"
    assert listed_pictures([folder]) == [a, b, c]
    assert listed_pictures([listing]) == [c, b, a, folder / "absent.png"]
    assert listed_pictures([b, folder, listing]) == [b, a, c, folder / "absent.png"]
    (folder / "d.heic").write_bytes(b"photograph")
    assert listed_pictures([folder]) == [a, b, folder / "d.heic", c]
    (folder / "d.heic").unlink()
    assert listed_pictures([tmp_path / "one by one.jpg"]) == [tmp_path / "one by one.jpg"]
    (tmp_path / "empty").mkdir()
    listing.write_text("\n\n")
    (tmp_path / "binary.txt").write_bytes(b"\x9f\x00\xff")
    for paths, reason in (
        ([tmp_path / "empty"], "no pictures found"),
        ([listing], "no pictures found"),
        ([], "no pictures found"),
        ([tmp_path / "absent.txt"], r"absent\.txt: no list of pictures"),
        ([tmp_path / "binary.txt"], r"binary\.txt: no list of pictures"),
    ):
        with pytest.raises(UsageError, match=reason):
            listed_pictures(paths)


@pytest.mark.parametrize("um_per_px", [0.08, 0.16, 0.3])
def test_with_a_scale_the_window_is_about_the_middle(
    classify: Run, red: Classifier, draw_discs: Draw, tmp_path: Path, um_per_px: float
) -> None:
    """The cell in the middle is named as the pipeline does, whatever lies farther out."""
    side = round(40 / um_per_px)
    discs = np.array([[side / 2, side / 2, 7.4 / um_per_px], [5 / um_per_px] * 3])
    picture = draw_discs((side, side), discs, ("spherocyte", "target_cell"))
    folder = write(tmp_path / "in", a=picture.pixels)
    _, (row,) = classify(folder, um_per_px=um_per_px)
    expected = red.name(picture, picture.boxes[:1], um_per_px).probs[0]
    assert probs_of(row) == pytest.approx(expected.tolist(), abs=1e-4)
    assert row["label"] == "spherocyte"


def test_find_looks_for_the_cell(
    classify: Run,
    red: Classifier,
    draw_discs: Draw,
    disc_detector: Callable[..., Detector],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The nearest cell to the middle among those of the classifier's kinds: a white cell does not count."""
    detector = disc_detector()
    monkeypatch.setattr("smearcount.classify.Detector", lambda *_: detector)
    discs = np.array([[70, 75, 46], [220, 210, 46], [150, 150, 46]])
    picture = draw_discs((300, 300), discs, ("target_cell", "spherocyte", "neutrophil"))
    bare = draw_discs((300, 300), discs[2:], ("neutrophil",))
    folder = write(tmp_path / "in", a=picture.pixels, b=bare.pixels)
    _, rows = classify(folder, find=True, um_per_px=0.16)
    found = detector.find(ArraySource(picture.pixels), 0.16)
    nearest = found.boxes[found.kinds == "rbc"]
    nearest = nearest[np.hypot(*(nearest[:, :2] + nearest[:, 2:] - 300).T).argmin()]
    expected = red.name(picture, nearest[None], 0.16).probs[0]
    assert probs_of(rows[0]) == pytest.approx(expected.tolist(), abs=1e-4)
    assert rows[0]["label"] == "spherocyte"
    # Without a cell of its kinds, the middle of the picture is all there is.
    assert probs_of(rows[1]) == pytest.approx(
        red.name(bare, np.array([[127, 127, 173, 173]], np.float32), 0.16).probs[0].tolist(), abs=1e-4
    )


def test_a_found_cell_has_no_code_that_it_is_too_large_for(
    naming_models: Path, draw_discs: Draw, disc_detector: Callable[..., Detector], tmp_path: Path
) -> None:
    shutil.copytree(naming_models / "red-discs", tmp_path / "sized")
    update_card(tmp_path / "sized", largest_um={"spherocyte": 7.0})
    sized = Classifier(Model(tmp_path / "sized"), RuntimeChoice())
    job = ClassifyJob(0.0, RED, 0.16)
    # 48 px are 7.7 um. Without a detector the size is not known.
    path = write(tmp_path / "in", a=cell(draw_discs, "spherocyte", 48, 300)) / "a.png"
    (unknown,) = name_files(sized, [path], job)
    (found,) = name_files(sized, [path], replace(job, find=disc_detector()))
    assert (unknown["label"], found["p_spherocyte"]) == ("spherocyte", "0.0000")
    assert found["label"] != "spherocyte"


def examples(folder: Path, draw: Draw, n: int = 5, **classes: int | str) -> Path:
    """Class folders of drawn cells of some blue or some code, all of different sizes."""
    for name, of in classes.items():
        sizes = np.linspace(40, 54, n)
        cells = [tinted(draw, of, size) if isinstance(of, int) else cell(draw, of, size) for size in sizes]
        write(folder / name, **{f"{name}{row}": each for row, each in enumerate(cells)})
    return folder


def test_examples_of_other_classes_alone_make_a_classifier_of_these(
    classify: Run, naming_models: Path, draw_discs: Draw, tmp_path: Path
) -> None:
    shown = examples(tmp_path / "shown", draw_discs, pale=60, deep=180)
    folder = write(tmp_path / "in", a=tinted(draw_discs, 60, 47), b=tinted(draw_discs, 180, 43))
    outcome, rows = classify(folder, examples=shown)
    assert tuple(rows[0]) == label_columns(("deep", "pale"))
    assert [row["label"] for row in rows] == ["pale", "deep"]
    for row in rows:
        assert sum(probs_of(row, ("deep", "pale"))) == pytest.approx(1, abs=2e-4)
    assert outcome.remarks[-1].startswith("the examples name one another right in 100%")
    assert len(outcome.remarks) == 1
    told, again = classify(folder, examples=shown, experts={str(naming_models / "red-discs"): 0.9})
    assert (told.remarks[0], again) == ("no expert is asked: the examples alone name the cells", rows)


def test_examples_that_the_classifier_knows_all_narrow_it_to_these(
    classify: Run, draw_discs: Draw, tmp_path: Path
) -> None:
    """Folders may be called by a synonym; the prototypes alone decide."""
    shown = examples(tmp_path / "shown", draw_discs, normal="normocyte", Esferocito="spherocyte")
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte", 44), b=cell(draw_discs, "spherocyte", 48))
    _, rows = classify(folder, examples=shown)
    assert sorted(rows[0]) == sorted(label_columns(("spherocyte", "normocyte")))
    assert [row["label"] for row in rows] == ["normocyte", "spherocyte"]


def test_examples_of_some_known_and_some_new_classes_extend_the_classifier(
    classify: Run, draw_discs: Draw, tmp_path: Path
) -> None:
    shown = examples(tmp_path / "shown", draw_discs, normocyte="normocyte", spherocyte="spherocyte")
    write(shown / "Tiny one", **{f"t{size}": cell(draw_discs, "spherocyte", size) for size in (16, 17, 18, 20, 22)})
    pictures = {"a": cell(draw_discs, "spherocyte", 18.5), "b": cell(draw_discs, "normocyte", 45)}
    pictures |= {"c": cell(draw_discs, "spherocyte", 45), "d": cell(draw_discs, "target_cell", 45)}
    folder = write(tmp_path / "in", **pictures)
    outcome, rows = classify(folder, examples=shown)
    assert tuple(rows[0]) == label_columns((*RED, "tiny_one"))
    assert [row["label"] for row in rows] == ["tiny_one", "normocyte", "spherocyte", "target_cell"]
    for row in rows:
        assert sum(probs_of(row, (*RED, "tiny_one"))) == pytest.approx(1, abs=2e-4)
    # Nothing is known against the new class where the classifier sees a code without examples.
    assert float(rows[3]["p_tiny_one"]) == 0
    assert any("no examples of target_cell" in remark for remark in outcome.remarks)


def test_few_examples_are_warned_of_and_too_few_refused(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"))
    outcome, _ = classify(folder, examples=examples(tmp_path / "few", draw_discs, 3, pale=60, deep=180))
    assert "fewer than 5 examples of deep (3), pale (3)" in outcome.remarks[0]
    for name, shown, reason in (
        ("single", examples(tmp_path / "single", draw_discs, 5, pale=60), "two classes or more, got pale only"),
        ("known", examples(tmp_path / "known", draw_discs, 5, normocyte=60), "two classes or more"),
        ("lone", examples(tmp_path / "lone", draw_discs, 1, pale=60, deep=180), "2 or more of each code"),
    ):
        with pytest.raises(UsageError, match=reason):
            classify(folder, examples=shown)
        assert name in str(shown)


def test_a_bad_example_stops_everything_and_leaves_the_old_file(
    classify: Run, draw_discs: Draw, tmp_path: Path
) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"))
    classify(folder)
    before = (tmp_path / "labels.csv").read_bytes()
    shown = examples(tmp_path / "shown", draw_discs, pale=60, deep=180)
    (shown / "pale" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        classify(folder, examples=shown)
    assert (tmp_path / "labels.csv").read_bytes() == before


def test_the_same_pictures_give_the_same_file(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", **{code: cell(draw_discs, code) for code in RED})
    classify(folder)
    before = (tmp_path / "labels.csv").read_bytes()
    classify(folder)
    assert (tmp_path / "labels.csv").read_bytes() == before


def test_an_unknown_model_is_refused(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"))
    with pytest.raises(ModelError, match="no such model"):
        classify(folder, model="absent")
    assert not (tmp_path / "labels.csv").exists()


SPARSE = Path(__file__).parents[1] / "sample_smears" / "sparse.jpg"


def test_patches_of_crop_get_the_names_of_the_pipeline(tmp_path: Path) -> None:
    pipeline = Pipeline.load(Settings(threads=1))
    analysis = pipeline.analyze(SPARSE)
    assert write_crops(pipeline, [SPARSE], tmp_path / "crops").written == len(analysis.cells)
    red = sorted((tmp_path / "crops").glob("*_rbc_*.png"))
    assert len(red) >= 20
    run_classify(ClassifyRun("red-cells"), red, tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open() as file:
        given = [row["label"] for row in csv.DictReader(file)]
    wanted = [path.stem.split("_rbc_")[1] for path in red]
    assert sum(a == b for a, b in zip(given, wanted, strict=True)) >= len(red) - 1


def test_a_patch_of_another_side_is_seen_at_its_own_scale(tmp_path: Path) -> None:
    pixels = np.full((452, 452, 3), 214, np.uint8)
    pixels[100:352, 100:352] = (190, 90, 100)
    write_picture(tmp_path / "cell.png", pixels)
    (tmp_path / "manifest.csv").write_text(
        "file,kind,diameter_um,side_um,um_per_px\ncell.png,rbc,8,24,0.1\nother.png,wbc,14,12,0.2\n"
    )
    listed = listed_patches([tmp_path / "cell.png", tmp_path / "elsewhere" / "cell.png"])
    assert listed == {
        tmp_path / "cell.png": ListedPatch(PatchSizes(24.0, 0.1), "rbc", 8.0),
        tmp_path / "other.png": ListedPatch(PatchSizes(12.0, 0.2), "wbc", 14.0),
    }
    picture = open_image(tmp_path / "cell.png")
    classifier: Any = SimpleNamespace(card=SimpleNamespace(patch_um=12.0, picture_um=None, input_px=96))
    shares = [
        (_show(picture, classifier, ClassifyJob(0.0, RED, patches=patches)).view[..., 1] < 150).mean()
        for patches in ({}, listed)
    ]
    assert shares == [pytest.approx((252 / 452) ** 2, rel=0.05), 1.0]


@pytest.mark.parametrize("sizes", ["wide,0.1", "-3,0.1", "nan,0.1", "12,0"])
def test_a_manifest_that_is_none_is_refused(sizes: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text(f"file,kind,diameter_um,side_um,um_per_px\na.png,rbc,7,{sizes}\n")
    with pytest.raises(UsageError, match="manifest.csv: .* elsewhere"):
        listed_patches([tmp_path / "a.png"])


def test_another_manifest_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("file,what\na.png,b\n")
    assert listed_patches([tmp_path / "a.png"]) == {}


def test_crops_have_the_names_that_analyze_gave_them(tmp_path: Path) -> None:
    """One white cell of this smear is left without a name: it is too unsure to be an erythroblast."""
    write_crops(Pipeline.load(), [SPARSE], tmp_path)
    with (tmp_path / "manifest.csv").open(newline="") as file:
        listed = {str(tmp_path / row["file"]): row for row in csv.DictReader(file)}
    white = {path: row for path, row in listed.items() if row["found_as"] == "wbc"}
    assert len(white) >= 2
    run_classify(ClassifyRun("white-cells"), [tmp_path], tmp_path / "labels.csv")
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert {path for path, row in rows.items() if row["status"] == "ok"} == set(white)
    assert {path: rows[path]["label"] for path in white} == {path: row["label"] for path, row in white.items()}


def test_a_cell_that_was_found_as_white_and_named_otherwise_is_asked_about(
    classify: Run, draw_discs: Draw, tmp_path: Path
) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"), b=cell(draw_discs, "normocyte"))
    head = "file,kind,found_as,diameter_um,side_um,um_per_px\n"
    (folder / "manifest.csv").write_text(f"{head}a.png,nrbc,rbc,7,12,0.16\nb.png,rbc,wbc,7,12,0.16\n")
    _, rows = classify(folder)
    assert [row["status"] for row in rows] == ["ok", "skipped"]


def test_crops_of_several_runs_share_one_folder(naming_pipeline: Callable[..., Pipeline], tmp_path: Path) -> None:
    pipeline, out = naming_pipeline(), tmp_path / "crops"
    first, second = tmp_path / "a" / "one.jpg", tmp_path / "a" / "two.jpg"
    first.parent.mkdir()
    for path in (first, second):
        shutil.copy(SPARSE, path)
    n = write_crops(pipeline, [first], out).written
    assert write_crops(pipeline, [second], out).written == n > 20
    assert len(listed_patches([out / "any.png"])) == len(list(out.glob("*.png"))) == 2 * n
    write_picture(first, np.full((300, 300, 3), 214, np.uint8))
    second.write_bytes(b"no picture")
    outcome = write_crops(pipeline, [first, second], out)
    assert (outcome.written, len(outcome.failed), outcome.renamed) == (0, 1, ((first, "one.jpg-2"),))
    assert len(listed_patches([out / "any.png"])) == len(list(out.glob("*.png"))) == 2 * n
    for content in (b"mine\n", b"caf\xe9\n"):
        (out / "manifest.csv").write_bytes(content)
        with pytest.raises(UsageError, match=r"manifest\.csv: no manifest .* another folder"):
            write_crops(pipeline, [first], out)


def test_crops_of_pictures_with_one_stem_or_name_keep_apart(
    naming_pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline, out = naming_pipeline(), tmp_path / "crops"
    paths = [tmp_path / name for name in ("a/x.jpg", "a/x.png", "b/x.jpg")]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        shutil.copy(SPARSE, path)
    n = write_crops(pipeline, paths[:1], out).written
    assert write_crops(pipeline, paths[1:2], out).written == n
    assert write_crops(pipeline, [paths[0], paths[2]], out).written == 2 * n
    assert len(listed_patches([out / "any.png"])) == len(list(out.glob("*.png"))) == 3 * n
    paths[2].write_bytes(b"no picture")
    assert write_crops(pipeline, [paths[0], paths[2]], out).written == n
    assert len(listed_patches([out / "any.png"])) == len(list(out.glob("*.png"))) == 3 * n


def test_crops_of_a_field_leave_those_of_another_slide_with_that_name(
    naming_pipeline: Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline, out = naming_pipeline(), tmp_path / "crops"
    paths = [tmp_path / slide / "001.jpg" for slide in "abc"]
    for path, (sample, clip) in zip(paths, ((SPARSE, 0), (SPARSE, 40), (SPARSE, 80)), strict=True):
        path.parent.mkdir()
        write_picture(path, open_image(sample).read(clip, 0, 400, 400))
    names = ["001.jpg", "001.jpg-2", "001.jpg-3"]
    for path, name in zip(paths, names, strict=True):
        found = write_crops(pipeline, [path], out)
        assert found.renamed == (() if name == "001.jpg" else ((path, name),))
    whole = sorted(out.iterdir())
    for _ in range(2):
        assert [name for _, name in write_crops(pipeline, paths[1:], out).renamed] == names[1:]
        assert sorted(out.iterdir()) == whole
    with (out / "manifest.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["file"] for row in rows} == {path.name for path in whole} - {"manifest.csv"}
    assert len({row["image_sha256"] for row in rows}) == 3
    assert len({(row["image_sha256"], row["cell_id"]) for row in rows}) == len(rows)


def test_cells_of_other_kinds_are_not_asked_about_and_strangers_are_told_of(
    classify: Run, draw_discs: Draw, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "in",
        a=cell(draw_discs, "normocyte"),
        b=cell(draw_discs, "normocyte"),
        c=cell(draw_discs, "normocyte"),
    )
    (folder / "manifest.csv").write_text(
        "file,kind,diameter_um,side_um,um_per_px\na.png,rbc,7,12,0.16\nb.png,wbc,9,12,0.16\n"
    )
    outcome, rows = classify(folder)
    assert [(row["status"], row["label"], row["um_per_px_source"]) for row in rows] == [
        ("ok", "normocyte", "manifest"),
        ("skipped", "", ""),
        ("ok", "normocyte", "window"),
    ]
    assert "wbc" in rows[1]["error"]
    assert not any("missing" in remark for remark in outcome.remarks)
    assert (outcome.named, outcome.skipped, outcome.failed) == (2, 1, ())
    assert any(remark.startswith("1 pictures are not in the manifest") for remark in outcome.remarks)
    given, rows = classify(folder, um_per_px=0.16)
    assert [(row["status"], row["um_per_px_source"]) for row in rows] == [
        ("ok", "flag"),
        ("skipped", ""),
        ("ok", "flag"),
    ]
    assert (given.named, given.skipped, given.remarks) == (2, 1, ())


@pytest.mark.parametrize("find", [False, True])
@pytest.mark.parametrize("um_per_px", [None, 12 / PATCH_PX, 0.2])
def test_the_scale_takes_away_nothing_else_that_the_manifest_says(
    disc_detector: Callable[..., Detector], draw_discs: Draw, tmp_path: Path, um_per_px: float | None, *, find: bool
) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"), b=np.full((75, 75, 3), 214, np.uint8))
    sizes = {"patch_um": 12.0, "input_px": 32, "picture_um": None, "kinds": ("rbc",)}
    classifier: Any = SimpleNamespace(card=SimpleNamespace(id="red", **sizes))
    job = ClassifyJob(
        0.4,
        ("normocyte", "erythroblast"),
        um_per_px,
        min_move_score=0.9,
        kind_of={"normocyte": "rbc", "erythroblast": "nrbc"},
        find=disc_detector() if find else None,
        patches={path: ListedPatch(PatchSizes(12.0, 0.16), "rbc", 7.0) for path in folder.iterdir()},
    )
    for name, lost in (("a.png", False), ("b.png", find)):
        shown = _show(open_image(folder / name), classifier, job)
        assert (shown.found_as, shown.lost) == ("rbc", lost)
        scale = um_per_px or 12 / PATCH_PX
        assert shown.um_per_px == pytest.approx(scale)
        wanted = 46 * scale if find and not lost else 7 * scale / (12 / PATCH_PX)
        assert shown.size_um == pytest.approx(wanted, rel=0.03)
        row = _row(folder / name, shown, np.array([0.2, 0.8], np.float32), job)
        assert row["label"] == "unclassified"


def test_patches_that_are_listed_and_missing_are_told_of(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte"))
    rows = "".join(f"{name}.png,rbc,7,12,0.16\n" for name in "abc")
    (folder / "manifest.csv").write_text(f"file,kind,diameter_um,side_um,um_per_px\n{rows}")
    assert classify(folder)[0].remarks == ("2 patches that a manifest beside the pictures lists are missing",)


def test_tiny_cells_and_lists_of_any_editor(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte", 8, 12), b=cell(draw_discs, "normocyte"))
    _, rows = classify(folder)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "list.txt").write_text('in/a.png\n"in"\n', encoding=encoding)
        assert listed_pictures([tmp_path / "list.txt"]) == [folder / "a.png", folder / "b.png"]
    (tmp_path / "list.txt").write_bytes(b"in/a.png\0")
    with pytest.raises(UsageError, match=r"list\.txt: .*zero byte"):
        listed_pictures([tmp_path / "list.txt"])
    with pytest.raises(UsageError, match=r"labels\.xlsx: .*\.csv"):
        run_classify(ClassifyRun("red-cells"), [folder], tmp_path / "labels.xlsx")


def test_a_scale_that_had_to_be_assumed_is_told(
    naming_models: Path,
    disc_detector: Callable[..., Detector],
    draw_discs: Draw,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []
    monkeypatch.setattr("smearcount.classify.Detector", lambda *args: asked.append(args) or disc_detector())
    folder = write(tmp_path / "in", a=cell(draw_discs, "normocyte", 46, 300), b=np.full((300, 300, 3), 214, np.uint8))
    model = str(naming_models / "red-discs")
    outcome = run_classify(ClassifyRun(model, Settings(min_score=0.3), find=True), [folder], tmp_path / "labels.csv")
    assert asked[0][2] == 0.3
    rows = list(csv.DictReader((tmp_path / "labels.csv").read_text().splitlines()))
    assert {row["um_per_px_source"] for row in rows} <= {"assumed", "estimated"}
    assert float(rows[0]["um_per_px"]) > 0
    assert [bool(row["error"]) for row in rows] == [False, True]
    assert any("give --um-per-px" in remark for remark in outcome.remarks)
    assert any("no cell found" in remark for remark in outcome.remarks)


def test_an_expert_is_heard_where_the_model_is_unsure(
    classify: Run, naming_models: Path, draw_discs: Draw, tmp_path: Path
) -> None:
    """An expert that is the model, only surer of itself, changes the cells within the gap and no others."""
    surer = tmp_path / "surer"
    shutil.copytree(naming_models / "red-discs", surer)
    update_card(surer, id="surer", temperature=0.4)
    tints = np.linspace(60, 125, 20).astype(int).tolist()
    folder = write(tmp_path / "in", **{f"{blue:03}": tinted(draw_discs, blue) for blue in tints})
    listed = tmp_path / "listed"
    shutil.copytree(folder, listed)
    rows = "".join(f"{path.name},rbc,7.3,12,0.16\n" for path in folder.iterdir())
    (listed / "manifest.csv").write_text(f"file,kind,diameter_um,side_um,um_per_px\n{rows}")
    for place, scale in ((folder, None), (folder, 0.16), (listed, None)):
        before, after = (
            np.array([probs_of(row) for row in classify(place, experts=experts, um_per_px=scale)[1]])
            for experts in ({}, {str(surer): 0.6})
        )
        best = np.sort(before, axis=1)
        gap = best[:, -1] - best[:, -2]
        unsure = gap < 0.6
        assert 2 < unsure.sum() < 18
        np.testing.assert_array_equal((before != after).any(axis=1), unsure)
        assert (np.sort(after, axis=1)[unsure, -1] > best[unsure, -1]).all()
    others = str(naming_models / "white-discs")
    outcome, rows = classify(folder, experts={others: 0.6})
    assert outcome.remarks == (f"{others} is not asked: red-discs lacks some of its codes",)
    assert rows == classify(folder)[1]


def test_what_was_done_to_the_stored_pixels_is_told(classify: Run, draw_discs: Draw, tmp_path: Path) -> None:
    plain = cell(draw_discs, "normocyte")
    folder = write(tmp_path / "in", plain=plain)
    clear = np.concatenate([plain, np.full((*plain.shape[:2], 1), 255, np.uint8)], axis=2)
    clear[:3, :3, 3] = 0
    cv2.imwrite(str(folder / "see_through.png"), clear)
    _, rows = classify(folder)
    assert [row["reading"] for row in rows] == ["", open_image(folder / "see_through.png").notes[0]]
    assert rows[1]["reading"]
