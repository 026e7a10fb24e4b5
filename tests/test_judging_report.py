import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from smearcount.arrays import FloatArray, Indices, Pixels
from smearcount.errors import DatasetError, ImageError
from smearcount.images import open_image
from smearcount.judging import Judged, figures, write_report
from smearcount.judging.page import WORST
from smearcount.judging.plots import abstention_plot, confusion_plot, reliability_plot

FILES = {
    *("report.html", "figures.csv", "confusion.csv", "predictions.csv", "worst.csv", "figures.json"),
    *("confusion.png", "confusion_normalised.png", "reliability.png", "abstention.png"),
}
HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{$ {{ 7*7 }} {% raw %}",
    '=HYPERLINK("http://example.org")',
    "染色 " + "long" * 30,
)
VOID = {"img", "meta", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, the text, and whether each element that opens also closes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def judged_cells(n: int = 60, k: int = 5, side: int = 16, **changes: Any) -> Judged:
    rng = np.random.default_rng(0)
    z = rng.normal(0, 2, (n, k))
    probs = (np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)).astype(np.float32)
    targets = np.eye(k, dtype=np.bool_)[(z + rng.gumbel(size=z.shape)).argmax(axis=1)]
    targets[:5, :2] = True
    values: dict[str, Any] = {
        **{"codes": tuple(f"code_{i}" for i in range(k)), "origins": np.array([f"f{i}.png" for i in range(n)])},
        **{
            "sources": np.array([f"source {i % 2}" for i in range(n)]),
            "groups": np.array([f"g{i % 9}" for i in range(n)]),
        },
        "views": list(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)),
    }
    return Judged(probs, targets, **{**values, **changes})


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def decoded(uri: str) -> Pixels:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(content))) as picture:
        return np.asarray(picture)


@pytest.fixture(scope="module")
def judged() -> Judged:
    return judged_cells()


@pytest.fixture(scope="module")
def folder(judged: Judged, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judging") / "new" / "report"
    assert write_report(judged, folder, "Made up") == figures(judged)
    return folder


def test_every_file_is_there_and_whole(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    assert (folder / "report.html").read_text().endswith("</html>\n")
    for name in FILES:
        if name.endswith(".png"):
            source = open_image(folder / name)
            assert min(source.size_wh) > 300
            source.read(0, 0, *source.size_wh)


def test_tables_hold_the_figures(folder: Path, judged: Judged) -> None:
    report = figures(judged)
    assert json.loads((folder / "figures.json").read_text()) == report
    for line, entry in zip(rows_of(folder / "figures.csv"), report["per_class"], strict=True):
        assert line["code"] == entry["code"]
        assert int(line["support"]) == entry["support"]
        assert float(line["f1"]) == pytest.approx(entry["f1"], abs=1e-6)
    matrix = [[int(line[f"predicted_{code}"]) for code in judged.codes] for line in rows_of(folder / "confusion.csv")]
    assert matrix == report["confusion"]


def test_every_cell_is_in_the_predictions(folder: Path, judged: Judged) -> None:
    lines = rows_of(folder / "predictions.csv")
    assert [line["origin"] for line in lines] == judged.origins.tolist()
    probs = [[float(line[f"p_{code}"]) for code in judged.codes] for line in lines]
    assert np.array(probs) == pytest.approx(judged.probs, abs=1e-6)
    assert [line["predicted"] for line in lines] == [judged.codes[i] for i in judged.predictions]
    assert [int(line["exact"]) for line in lines] == judged.exact.astype(int).tolist()
    assert sum(int(line["right"]) for line in lines) == judged.right.sum()
    row = int(np.flatnonzero(~judged.exact)[0])
    assert lines[row]["true"] == judged.truth(row)
    runner_up = np.sort(judged.probs, axis=1)[:, -2]
    assert [float(line["runner_up_probability"]) for line in lines] == pytest.approx(runner_up, abs=1e-6)


def test_worst_cells_come_first(folder: Path, judged: Judged) -> None:
    lines = rows_of(folder / "worst.csv")
    assert len(lines) == WORST
    losses = [float(line["loss"]) for line in lines]
    assert losses == pytest.approx(np.sort(judged.losses)[::-1][:WORST], abs=1e-6)
    assert [int(line["rank"]) for line in lines] == list(range(1, WORST + 1))
    assert judged.losses[[int(line["row"]) for line in lines]] == pytest.approx(losses, abs=1e-6)


def test_page_shows_the_worst_cells_as_the_network_saw_them(folder: Path, judged: Judged) -> None:
    pictures = Page((folder / "report.html").read_text()).all("img")
    assert len(pictures) == 4 + WORST
    first = decoded(pictures[4]["src"])
    view = judged.views[int(judged.worst(1)[0])]
    # A small view is enlarged by whole pixels.
    assert np.array_equal(first[::6, ::6], view)
    assert first.shape == (96, 96, 3)


def test_the_same_cells_give_the_same_files(folder: Path, judged: Judged, tmp_path: Path) -> None:
    write_report(judged, tmp_path, "Made up")
    for name in FILES:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_page_is_accessible(folder: Path) -> None:
    page = Page((folder / "report.html").read_text())
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("title")) == len(page.all("main")) == 1
    assert all(len(image["alt"]) > 10 for image in page.all("img"))
    assert all(head.get("scope") in ("row", "col") for head in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) == 6
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    referred = [attributes.get("aria-labelledby") for _, attributes in page.elements]
    links = [link["href"].removeprefix("#") for link in page.all("a")]
    assert {*links, *(name for name in referred if name)} <= set(names)


def assert_alone(text: str) -> Page:
    """Nothing is fetched and nothing runs."""
    page = Page(text)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "action", "data", "background"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, name)
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in style
    assert "@import" not in style
    policy = next(meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none';")
    return page


def test_page_stands_alone(folder: Path) -> None:
    assert_alone((folder / "report.html").read_text())


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    names = np.array([HOSTILE[i % 5] for i in range(60)])
    cells = judged_cells(codes=HOSTILE, origins=names, sources=names, groups=names)
    heat = np.zeros((WORST, 4, 4), np.float32)
    write_report(cells, tmp_path, "</title><script>alert(2)</script>", lambda rows: heat)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = assert_alone(text)
    words = "".join(page.words)
    for name in (*HOSTILE, "</title><script>alert(2)</script>"):
        assert name in words
    lines = rows_of(tmp_path / "predictions.csv")
    assert lines[0]["origin"] == HOSTILE[0]
    # A spreadsheet would run it without the apostrophe.
    assert lines[3]["origin"] == "'" + HOSTILE[3]
    assert "'" + HOSTILE[3] in [line["true"] for line in rows_of(tmp_path / "confusion.csv")]


def test_heat_maps_are_asked_for_the_worst_and_laid_over_them(judged: Judged, tmp_path: Path) -> None:
    asked: list[list[int]] = []

    def heat(rows: Indices) -> FloatArray:
        asked.append(rows.tolist())
        maps = np.zeros((len(rows), 16, 16), np.float32)
        maps[:, :8] = 1
        return maps

    write_report(judged, tmp_path, "With heat", heat)
    text = (tmp_path / "report.html").read_text()
    assert asked == [judged.worst(WORST).tolist()]
    assert "Grad-CAM" in text
    pictures = assert_alone(text).all("img")[4:]
    assert len(pictures) == 2 * WORST
    for plain, hot in zip(pictures[::2], pictures[1::2], strict=True):
        differs = (decoded(plain["src"]) != decoded(hot["src"])).any(axis=2)
        assert differs[:40].all()
        assert not differs[56:].any()


def test_a_report_that_fails_leaves_nothing(judged: Judged, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a map for each of 48 cells, got 1"):
        write_report(judged, tmp_path / "a", "t", lambda rows: np.zeros((1, 4, 4), np.float32))
    coarse = judged_cells(5)
    with pytest.raises(DatasetError, match="exact label"):
        write_report(coarse, tmp_path / "b", "t")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="file"):
        write_report(judged, tmp_path / "file" / "report", "t")


def test_few_cells_and_two_codes_are_enough(tmp_path: Path) -> None:
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    text = np.array(["x", "y"])
    views = [np.zeros((300, 300, 3), np.uint8), np.zeros((300, 450, 3), np.uint8)]
    two = Judged(probs, np.eye(2, dtype=np.bool_), ("a", "b"), text, text, views)
    write_report(two, tmp_path, "Two")
    page = Page((tmp_path / "report.html").read_text())
    assert "No cell was given a wrong code." in "".join(page.words)
    # Large views are shown at no more than 224 px, and keep their shape.
    assert {decoded(image["src"]).shape for image in page.all("img")[4:]} == {(224, 224, 3), (149, 224, 3)}


def grey_share(pixels: Pixels) -> float:
    return float((pixels == 0xE3).all(axis=2).mean())


def test_codes_without_cells_are_grey_in_the_matrix() -> None:
    table = [[5, 1, 0], [0, 7, 0], [0, 0, 0]]
    codes = ("a", "b", "c")
    full = confusion_plot([[5, 1, 0], [0, 7, 0], [0, 0, 2]], codes, shares=False)
    assert grey_share(full) < 0.001
    assert grey_share(confusion_plot(table, codes, shares=False)) > 0.05
    shares = [[5 / 6, 1 / 6, 0], [0, 1, 0], [None, None, None]]
    assert grey_share(confusion_plot(shares, codes, shares=True)) > 0.05


def test_matrix_grows_with_its_codes() -> None:
    sides = []
    for k in (2, 17):
        plot = confusion_plot((1000 * np.eye(k, dtype=int)).tolist(), [f"code_{i}" for i in range(k)], shares=False)
        assert plot.dtype == np.uint8
        sides.append(plot.shape[0])
    assert sides[1] - sides[0] > 15 * 55


def test_curves_are_drawn_where_nothing_is_known() -> None:
    bins = [{"low": i / 15, "high": (i + 1) / 15, "n": 0, "confidence": None, "accuracy": None} for i in range(15)]
    bins[-1] |= {"n": 1, "confidence": 0.99, "accuracy": 1.0}
    assert reliability_plot(bins).shape[2] == 3
    rows = [
        {"threshold": 0.0, "abstained": 0.0, "accuracy": 0.2},
        {"threshold": 0.9, "abstained": 1.0, "accuracy": None},
    ]
    assert abstention_plot(rows).shape[2] == 3
