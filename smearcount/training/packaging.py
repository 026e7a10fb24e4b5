"""Turns a finished training run into a model folder: weights, architecture, OpenVINO IR, probe, card and README."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from safetensors.torch import load_file, save

from smearcount.cards import Card, ClassifierCard, DetectorCard, FileEntry, Metric, Model, as_yaml, find_model
from smearcount.config import faults_of, load_yaml, shipped
from smearcount.errors import ConfigError, ModelError
from smearcount.probe import probe_errors
from smearcount.training.exporting import export_onnx, export_openvino, make_probe

__all__ = [
    "SPLIT_FILE",
    "TAXONOMY_FILE",
    "assemble",
    "copy_companions",
    "export_model",
    "git_commit",
    "package_classifier",
    "package_detector",
    "package_naming_run",
    "package_run",
    "render_readme",
    "update_card",
]

LARGEST_CELL_UM = 24.0

SPLIT_FILE = "split.csv"
"""In the folder of a classifier that a laboratory trained: which cells it knows; no runtime reads it."""

TAXONOMY_FILE = "taxonomy.yaml"
"""The shipped taxonomy and the codes that a recipe merges, beside the model that gives them."""


def package_detector(run: Path, recipe: dict[str, Any], about: dict[str, Any], out: Path) -> Card:
    """Write the model folder `out` of a detector; an existing one is replaced as a whole.

    Args:
        run: folder with `model.safetensors` and `architecture.yaml`.
        recipe: content of the training recipe.
        about: the words of the card: id, description, licence, intended_use, limits, training_data, thresholds.
        out: target folder, normally `weights/<id>`.

    Returns:
        The card, whose metrics are empty until `evaluate` has filled them in.

    Raises:
        ConfigError: a word of the card is missing or wrong.
    """
    card = _checked(
        DetectorCard,
        {
            **about,
            "um_per_px": recipe.get("found_um_per_px") or recipe["canonical_um_per_px"],
            "largest_cell_um": LARGEST_CELL_UM,
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "metrics": (),
            "git_commit": git_commit(),
            "files": {},
        },
    )
    return assemble(run, card, out)


def _checked(kind: type[Card], values: dict[str, Any]) -> Card:
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
    card = _checked(
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


def package_naming_run(run: Path, recipe_name: str, about_path: Path | None, kinds: Iterable[str]) -> Path:
    """Package a classifier's run as `<run>/model`, with the words of `about_path`, or plain ones under its own id.

    A model folder that holds these weights already keeps what was measured; it gets the kinds, and the words of
    `about_path`, if any.

    Raises:
        ConfigError: the words are malformed.
    """
    out = run / "model"
    told = load_about(about_path) if about_path else {}
    if _holds(out, half_weights(run / "model.safetensors")):
        _reword(out, {"kinds": tuple(kinds), **told})
        return out
    name = re.sub(r"[^a-z0-9]+", "-", recipe_name.lower()).strip("-")
    about = told if about_path else {**_OWN_CLASSIFIER, "id": f"own-{name or 'classifier'}"}
    package_classifier(run, {"kinds": tuple(kinds), **about}, out)
    return out


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
    reworded = _checked(type(card), {**as_yaml(card), **about})
    if reworded != card:
        _write_card(folder, reworded)


_UNMEASURED = "Not measured yet"
"""How the limit begins that a card has until `evaluate` has written figures on it."""

_OWN_CLASSIFIER: dict[str, Any] = {
    **{"description": "Names cells; trained by its user.", "licence": "not stated", "probe_tolerance": 0.05},
    **{"intended_use": "Research use; no medical device.", "min_label_score": 0.5, "training_data": ()},
    "limits": [f"{_UNMEASURED}: run `smearcount evaluate classifier`."],
}


def assemble(run: Path, card: Card, out: Path) -> Card:
    """Write the model folder `out` from the weights and the architecture of a run; an existing one is replaced.

    Args:
        run: folder with `model.safetensors` and `architecture.yaml`.
        card: the card without its files.
        out: target folder, normally `weights/<id>`.
    """
    staging = Path(tempfile.mkdtemp(prefix=".packaging-", dir=out.parent))
    try:
        (staging / "model.safetensors").write_bytes(half_weights(run / "model.safetensors"))
        shutil.copyfile(run / "architecture.yaml", staging / "architecture.yaml")
        runtimes = {"model.safetensors": "torch", "architecture.yaml": "torch"}
        _write_card(staging, card.model_copy(update={"files": _entries(staging, runtimes)}))
        for name, content in export_openvino(Model(staging)).items():
            (staging / name).write_bytes(content)
            runtimes[name] = "openvino"
        (staging / "probe.npz").write_bytes(make_probe(Model(staging)))
        runtimes["probe.npz"] = "probe"
        card = card.model_copy(update={"files": _entries(staging, runtimes)})
        _write_card(staging, card)
        if out.exists():
            shutil.rmtree(out)
        staging.chmod(0o755)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return card


def package_run(run: Path, recipe_path: Path, about_path: Path | None) -> Path:
    """Package a run as `<run>/model`, with the words of `about_path`, or plain ones under an id of its own.

    Raises:
        ConfigError: the recipe or the words are malformed.
    """
    recipe = load_yaml(recipe_path)
    about = load_about(about_path) if about_path else _plain_words(recipe, recipe_path)
    package_detector(run, recipe, about, run / "model")
    return run / "model"


def _plain_words(recipe: dict[str, Any], recipe_path: Path) -> dict[str, Any]:
    """The words of a card for a laboratory's own detector: technical fields as shipped, origin from the recipe."""
    shipped_words = load_about(shipped("configs") / "train" / "detector-card.yaml")
    unknown = {"licence": "not stated", "pictures": 0, "split": "train list"}
    name = re.sub(r"[^a-z0-9]+", "-", recipe_path.stem.lower()).strip("-")
    return shipped_words | {
        "id": f"own-{name or 'detector'}",
        "description": "Finds red cells, white cells and platelets; trained by its user.",
        "limits": [f"{_UNMEASURED}: run `smearcount evaluate detector`."],
        "training_data": [{"name": source, **unknown} for source in recipe["sources"]],
    }


def export_model(model: str, to: str, out: Path) -> Path:
    """Copy a model to `out/<id>` with the files of one more runtime, checked against the probe there.

    Raises:
        ModelError: the model is damaged, or the new files differ from the probe by more than the card allows.
        ConfigError: the card is malformed.
    """
    found = find_model(model)
    found.verify()
    out.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".export-", dir=out))
    try:
        for name in found.card.files:
            (staging / name).write_bytes(found.read(name))
        copy_companions(found.folder, staging)
        new = {"model.onnx": export_onnx(found)} if to == "onnx" else export_openvino(found)
        for name, content in new.items():
            (staging / name).write_bytes(content)
        runtimes = {name: entry.runtime for name, entry in found.card.files.items()} | dict.fromkeys(new, to)
        _write_card(staging, found.card.model_copy(update={"files": _entries(staging, runtimes)}))
        probe_errors(Model(staging), (to,))
        target = out / found.card.id
        shutil.rmtree(target, ignore_errors=True)
        staging.chmod(0o755)
        staging.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def copy_companions(folder: Path, target: Path) -> None:
    """Copy what lies beside the files of a card: the list of the cells that a model knows, and its taxonomy."""
    for name in (SPLIT_FILE, TAXONOMY_FILE):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def update_card(folder: Path, **changes: Any) -> Card:
    """Replace fields of a card (metrics, thresholds) and render its README again; with metrics it is a measured one."""
    before = Model(folder).card
    values = {**as_yaml(before), **changes}
    if values["metrics"]:
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


def _entries(folder: Path, runtimes: dict[str, str]) -> dict[str, FileEntry]:
    entries = {}
    for name, runtime in runtimes.items():
        content = (folder / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        entries[name] = FileEntry.model_validate({"runtime": runtime, "sha256": digest, "bytes": len(content)})
    return entries


def git_commit() -> str:
    """Commit of the checkout that smearcount runs from; `unknown` for an installed wheel."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"
    except OSError:
        return "unknown"


def _write_card(folder: Path, card: Card) -> None:
    text = yaml.safe_dump(as_yaml(card), sort_keys=False, allow_unicode=True, width=110)
    (folder / "card.yaml").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(render_readme(card), encoding="utf-8")


def render_readme(card: Card) -> str:
    """The card for a human reader, in Markdown."""
    lines = [
        f"# {card.id}",
        "",
        card.description,
        "",
        f"- Task: {card.task}; gives {', '.join(card.codes)}",
        *_technical(card),
        f"- Licence: {card.licence}",
        f"- Intended use: {card.intended_use}",
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card.limits),
        "",
        "## Trained on",
        "",
        "| collection | licence | pictures | split | note |",
        "|---|---|---|---|---|",
        *(f"| {d.name} | {d.licence} | {d.pictures} | {d.split} | {d.note} |" for d in card.training_data),
        "",
        "## Measured",
        "",
        "| figure | data | n | value | 95 % interval |",
        "|---|---|---|---|---|",
        *(f"| {m.name} | {m.data} | {m.n} | {m.value:.4g} | {_interval(m)} |" for m in card.metrics),
        "",
        *_abstention(card),
        "## Files",
        "",
        "| file | runtime | bytes | sha256 |",
        "|---|---|---|---|",
        *(f"| {name} | {e.runtime} | {e.bytes} | {e.sha256[:16]}... |" for name, e in card.files.items()),
        "",
    ]
    return "\n".join(lines)


def _technical(card: Card) -> list[str]:
    """The lines that only one task has."""
    if isinstance(card, DetectorCard):
        scores = ", ".join(f"{kind} {score:g}" for kind, score in card.min_score.items())
        return [
            f"- Works at {card.um_per_px} um a pixel, in windows of {card.window_px} px",
            f"- Thresholds: {scores}, from {card.min_score_from}",
        ]
    if not isinstance(card, ClassifierCard):
        return []
    return [
        f"- Asked about: {', '.join(card.kinds)}",
        f"- Sees a square of {card.patch_um:g} um around the cell at {card.input_px} x {card.input_px} px",
        f"- Temperature {card.temperature:.3g}; below a probability of {card.min_label_score:g} a cell is unclassified",
        *(
            [f"- Below {card.min_move_score:g} no name moves a cell to another kind than it was found as"]
            * bool(card.min_move_score)
        ),
        *(
            [f"- Below {card.second_look:g} it looks again, in four quarter turns, and takes the mean"]
            * bool(card.second_look)
        ),
        *(
            [f"- Learned from painted cells, without any test on real ones: {', '.join(card.painted)}"]
            * bool(card.painted)
        ),
    ]


def _abstention(card: Card) -> list[str]:
    """Accuracy against the share of cells left unclassified."""
    if not isinstance(card, ClassifierCard) or not card.abstention:
        return []
    return [
        *("## Abstention", "", "| threshold | left unclassified | accuracy of the rest |", "|---|---|---|"),
        *(f"| {at:.2f} | {100 * share:.1f} % | {accuracy:.4f} |" for at, share, accuracy in card.abstention),
        "",
    ]


def _interval(metric: Metric) -> str:
    return "" if metric.low is None or metric.high is None else f"{metric.low:.4g} to {metric.high:.4g}"


def load_about(path: Path) -> dict[str, Any]:
    """The words of a card from a YAML file, such as `configs/train/detector-card.yaml`."""
    about = load_yaml(path)
    if not isinstance(about, dict):
        raise ModelError(f"{path}: expected a mapping with id, description, limits, ...")
    return about
