"""The page of a model, `README.md`, from its card."""

from __future__ import annotations

from smearcount.cards import Card, ClassifierCard, DetectorCard, Metric

__all__ = ["render_readme"]


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
    lines = [
        f"- Asked about: {', '.join(card.kinds)}",
        f"- Sees a square of {card.patch_um:g} um around the cell at {card.input_px} x {card.input_px} px",
    ]
    if card.picture_um is not None:
        lines.append(f"- Takes a whole picture of one cell to be {card.picture_um:g} um wide")
    below = f"below a probability of {card.min_label_score:g} a cell is unclassified"
    lines.append(f"- Temperature {card.temperature:.3g}; {below}")
    if card.min_move_score:
        lines.append(f"- Below {card.min_move_score:g} no name moves a cell to another kind than it was found as")
    if card.second_look:
        lines.append(f"- Below {card.second_look:g} it looks again, in four quarter turns, and takes the mean")
    if card.painted:
        lines.append(f"- Learned from painted cells, without any test on real ones: {', '.join(card.painted)}")
    return lines


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
