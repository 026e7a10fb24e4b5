"""Turns a finished training run into a model folder: weights, architecture, OpenVINO IR, probe, card and README."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save

from smearcount.cards import Card, ClassifierCard, DetectorCard, FileEntry, Model, TrainingData, as_yaml, find_model
from smearcount.config import faults_of, load_yaml, read_model, shipped
from smearcount.errors import ConfigError, ModelError, UsageError
from smearcount.images import write_text_atomic
from smearcount.probe import ProbeError, measure_probe
from smearcount.training.detector import DetectorRecipe
from smearcount.training.exporting import export_onnx, export_openvino, make_probe
from smearcount.training.readme import render_readme

__all__ = [
    "SPLIT_FILE",
    "TAXONOMY_FILE",
    "assemble",
    "check_replaceable",
    "checked_card",
    "copy_companions",
    "detector_card",
    "export_model",
    "file_entries",
    "git_commit",
    "load_about",
    "package_classifier",
    "package_naming_run",
    "staged",
    "update_card",
]

LARGEST_CELL_UM = 24.0

SPLIT_FILE = "split.csv"
"""In the folder of a classifier that a laboratory trained: which cells it knows; no runtime reads it."""

TAXONOMY_FILE = "taxonomy.yaml"
"""The shipped taxonomy and the codes that a recipe merges, beside the model that gives them."""


def detector_card(recipe_path: Path, about_path: Path | None) -> Card:
    """The card of a detector for `assemble`, to be had before the training, which a wrong word would cost.

    Args:
        recipe_path: of the training.
        about_path: the words: id, description, licence, intended_use, limits, training_data, thresholds; plain ones
            under an id of its own without it.

    Returns:
        The card, whose metrics are empty until `evaluate` has filled them in.

    Raises:
        ConfigError: the recipe is malformed, or a word of the card is missing or wrong.
    """
    recipe = read_model(DetectorRecipe, recipe_path)
    return checked_card(
        DetectorCard,
        {
            **(load_about(about_path) if about_path else _plain_words(recipe, recipe_path)),
            "um_per_px": recipe.found_um_per_px or recipe.canonical_um_per_px,
            "largest_cell_um": LARGEST_CELL_UM,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "metrics": (),
            "git_commit": git_commit(),
            "files": {},
        },
    )


def checked_card(kind: type[Card], values: dict[str, Any]) -> Card:
    """A card of these values.

    Raises:
        ConfigError: one is missing or wrong; says which.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        whose = values.get("id", "a model without id")
        raise ConfigError(f"words of the card of {whose}: {faults_of(error, kind)}") from error


def package_classifier(run: Path, about: dict[str, Any], out: Path) -> Card:
    """Write the model folder `out` of a classifier; an existing one is replaced as a whole.

    Args:
        run: folder of a finished training, with `summary.json`.
        about: the words of the card: id, description, kinds, painted, min_label_score, probe_tolerance, licence,
            intended_use, limits, training_data.
        out: target folder, normally `weights/<id>`.

    Returns:
        The card, whose metrics are empty until `evaluate classifier --card` has filled them in.

    Raises:
        ConfigError: a word of the card is missing or wrong.
    """
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    kept = {name: summary[name] for name in ("codes", "mean", "std", "input_px", "temperature")}
    card = checked_card(
        ClassifierCard,
        {
            **about,
            **kept,
            "patch_um": summary["recipe"].get("named_um") or summary["recipe"]["patch_um"],
            "embedding": summary["embedding"],
            "metrics": (),
            "git_commit": git_commit(),
            "files": {},
        },
    )
    return assemble(run, card, out)


def package_naming_run(
    run: Path,
    recipe_name: str,
    about_path: Path | None,
    kinds: Iterable[str],
    picture_um: float | None = None,
    training_data: Sequence[TrainingData] = (),
) -> Path:
    """Package a classifier's run as `<run>/model`, with the words of `about_path`, or plain ones under its own id.

    With plain words the card lists the `training_data` given. A model folder that holds these weights already keeps
    what was measured; it gets the kinds, the side of a whole picture, and the words of `about_path`, if any.

    Raises:
        ConfigError: the words are malformed.
    """
    out = run / "model"
    told = {"kinds": tuple(kinds), "picture_um": picture_um, **(load_about(about_path) if about_path else {})}
    if _holds(out, half_weights(run / "model.safetensors")):
        _reword(out, told)
        return out
    own = {"id": _own_id(recipe_name, "classifier"), "training_data": tuple(training_data)}
    plain = {} if about_path else {**_OWN_CLASSIFIER, **own}
    package_classifier(run, {**plain, **told}, out)
    return out


def _own_id(recipe_name: str, task: str) -> str:
    """The id of a laboratory's own model: `own-` and the name in small letters, digits and hyphens, else the task."""
    name = re.sub(r"[^a-z0-9]+", "-", recipe_name.lower()).strip("-")
    return f"own-{name or task}"


def _holds(folder: Path, weights: bytes) -> bool:
    """Whether a model folder is whole and has these weights."""
    try:
        model = Model(folder)
        model.verify()
    except (ModelError, ConfigError):
        return False
    return model.read("model.safetensors") == weights


def _reword(folder: Path, about: dict[str, Any]) -> None:
    card = Model(folder).card
    reworded = checked_card(type(card), {**as_yaml(card), **about})
    if reworded != card:
        _write_card(folder, reworded)


_UNMEASURED = "Not measured yet"
"""How the limit begins that a card has until `evaluate` has written figures on it."""

_OWN_CLASSIFIER: dict[str, Any] = {
    **{"description": "Names cells; trained by its user.", "licence": "not stated", "probe_tolerance": 0.05},
    **{"intended_use": "Research use; no medical device.", "min_label_score": 0.5},
    "limits": [f"{_UNMEASURED}: run `smearcount evaluate classifier`."],
}


def assemble(run: Path, card: Card, out: Path) -> Card:
    """Write the model folder `out` from the weights and the architecture of a run; an existing one is replaced.

    Args:
        run: folder with `model.safetensors` and `architecture.yaml`.
        card: the card without its files.
        out: target folder, normally `weights/<id>`.

    Raises:
        ModelError: OpenVINO does not give the answers of the network here.
    """
    with staged(out) as staging:
        (staging / "model.safetensors").write_bytes(half_weights(run / "model.safetensors"))
        shutil.copyfile(run / "architecture.yaml", staging / "architecture.yaml")
        runtimes = {"model.safetensors": "torch", "architecture.yaml": "torch"}
        card = _list_files(staging, card, runtimes)
        (staging / "probe.npz").write_bytes(make_probe(Model(staging)))
        return _with_openvino(staging, card, runtimes | {"probe.npz": "probe"})


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """A hidden folder to make a model in, which takes the place of `target` if all goes well.

    Raises:
        ModelError: of the model in it, with the name of the target.
    """
    staging = Path(tempfile.mkdtemp(prefix=".packaging-", dir=target.parent))
    try:
        yield staging
        shutil.rmtree(target, ignore_errors=True)
        staging.chmod(0o755)
        staging.rename(target)
    except ModelError as error:
        raise ModelError(str(error).replace(str(staging), str(target))) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _with_openvino(folder: Path, card: Card, runtimes: Mapping[str, str]) -> Card:
    """Add the OpenVINO files to a model: a classifier's in half precision where that reproduces its probe.

    Weights that were folded with normalisations of small variance lose too much by the second rounding. A detector
    stays in float32, since half precision shifts boxes by a pixel.
    """
    model = Model(folder)
    for half in (True, False) if isinstance(card, ClassifierCard) else (False,):
        files = export_openvino(model, half=half)
        for name, content in files.items():
            (folder / name).write_bytes(content)
        card = _list_files(folder, card, {**runtimes, **dict.fromkeys(files, "openvino")})
        _, worst = measure_probe(Model(folder), "openvino")
        if worst.fits(card):
            return card
    raise _unlike(folder, "openvino", worst)


def _unlike(folder: Path, runtime: str, worst: ProbeError) -> ModelError:
    return ModelError(
        f"{folder}: not written, since {runtime} differs from the network by {worst.value:.3g}, scores "
        f"{worst.score:.3g}: more than the card allows; try another version of {runtime}"
    )


def _plain_words(recipe: DetectorRecipe, recipe_path: Path) -> dict[str, Any]:
    """The words of a card for a laboratory's own detector: technical fields as shipped, origin from the recipe."""
    shipped_words = load_about(shipped("configs") / "train" / "detector-card.yaml")
    unknown = {"licence": "not stated", "pictures": 0, "split": "train list"}
    return shipped_words | {
        "id": _own_id(recipe_path.stem, "detector"),
        "description": "Finds red cells, white cells and platelets; trained by its user.",
        "limits": [f"{_UNMEASURED}: run `smearcount evaluate detector`."],
        "training_data": [{"name": source, **unknown} for source in recipe.sources],
        "min_score_from": f"{shipped_words['id']}, not fitted to this model",
    }


def export_model(model: str, to: str, out: Path) -> Path:
    """Copy a model to `out/<id>` with the files of one more runtime, checked against the probe there.

    Raises:
        ModelError: the model is damaged, or the new files differ from the probe by more than the card allows.
        ConfigError: the card is malformed.
        UsageError: `out/<id>` holds something else than an earlier copy.
    """
    found = find_model(model)
    found.verify()
    check_replaceable(out / found.card.id, found.card)
    out.mkdir(parents=True, exist_ok=True)
    with staged(out / found.card.id) as staging:
        for name in found.card.files:
            (staging / name).write_bytes(found.read(name))
        copy_companions(found.folder, staging)
        runtimes = {name: entry.runtime for name, entry in found.card.files.items()}
        _list_files(staging, found.card, runtimes)
        if to == "onnx":
            (staging / "model.onnx").write_bytes(export_onnx(found))
            _list_files(staging, found.card, {**runtimes, "model.onnx": "onnx"})
            _, worst = measure_probe(Model(staging), "onnx")
            if not worst.fits(found.card):
                raise _unlike(staging, "onnx", worst)
        else:
            _with_openvino(staging, found.card, runtimes)
    return out / found.card.id


def check_replaceable(target: Path, card: Card) -> None:
    """Refuse a folder that holds more than an earlier copy or version of a model, which would be lost.

    Args:
        target: where the model is to be written.
        card: of the model; what was made of it has its probe, as no other network gives these answers.

    Raises:
        UsageError: it is no folder, or has files that are on no card, or a model of other weights.
    """
    if not target.is_dir() or target.is_symlink():
        if target.is_symlink() or target.exists():
            raise UsageError(f"{target}: is no folder; {_ELSEWHERE}")
        return
    names = {path.name for path in target.iterdir()}
    try:
        there = Model(target).card if names else card
    except (ModelError, ConfigError) as error:
        raise UsageError(f"{target}: holds other files than those of a model; {_ELSEWHERE}") from error
    strange = sorted(names - {*there.files, "card.yaml", "README.md", SPLIT_FILE, TAXONOMY_FILE})
    if strange:
        raise UsageError(f"{target}: holds files that are not on its card, such as {strange[0]}; {_ELSEWHERE}")
    if there.files.get("probe.npz") != card.files.get("probe.npz"):
        raise UsageError(f"{target}: holds another model of this name, with other weights; {_ELSEWHERE}")


_ELSEWHERE = "move it away or delete it, or give another folder with --out"


def copy_companions(folder: Path, target: Path) -> None:
    """Copy what lies beside the files of a card: the list of the cells that a model knows, and its taxonomy."""
    for name in (SPLIT_FILE, TAXONOMY_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def update_card(folder: Path, **changes: Any) -> Card:
    """Replace fields of a card (metrics, thresholds) and render its README again.

    With metrics it is a measured one, unless `limits` are given that say otherwise.

    Raises:
        ImageError: the folder can't be written.
    """
    before = Model(folder).card
    values = {**as_yaml(before), **changes}
    if values["metrics"] and "limits" not in changes:
        values["limits"] = [limit for limit in values["limits"] if not limit.startswith(_UNMEASURED)]
    card = type(before).model_validate(values)
    _write_card(folder, card)
    return card


def half_weights(path: Path) -> bytes:
    """Convolution weights in half precision, normalisation in full: it is tiny, and its variances are small."""
    tensors = {
        key: value.half() if value.is_floating_point() and value.ndim >= 2 else value
        for key, value in load_file(path).items()
    }
    return bytes(save(tensors))


def git_commit() -> str:
    """Commit of the checkout that smearcount runs from; `unknown` for an installed wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def file_entries(folder: Path, runtimes: Mapping[str, str]) -> dict[str, FileEntry]:
    """What a card says of the files in a folder, of which `runtimes` says who reads each."""
    entries = {}
    for name, runtime in runtimes.items():
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries[name] = FileEntry.model_validate({"runtime": runtime, "sha256": digest, "bytes": len(content)})
    return entries


def _list_files(folder: Path, card: Card, runtimes: Mapping[str, str]) -> Card:
    """Write the card with an entry for each file, of which `runtimes` says who reads it."""
    listed = card.model_copy(update={"files": file_entries(folder, runtimes)})
    _write_card(folder, listed)
    return listed


def _write_card(folder: Path, card: Card) -> None:
    text = yaml.safe_dump(as_yaml(card), sort_keys=False, allow_unicode=True, width=110)
    write_text_atomic(folder / "card.yaml", text)
    write_text_atomic(folder / "README.md", render_readme(card))


def load_about(path: Path) -> dict[str, Any]:
    """The words of a card from a YAML file, such as `configs/train/detector-card.yaml`."""
    about = load_yaml(path)
    if not isinstance(about, dict):
        raise ModelError(f"{path}: expected a mapping with id, description, limits, ...")
    return about
