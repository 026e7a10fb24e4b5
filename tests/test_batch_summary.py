"""The summary says what the rows say, with exact limits, asks for nothing, and is whole or absent."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_batch import DiscMaker, smears
from scipy import stats

from smearcount.batch import BatchJob, run_batch, summary
from smearcount.batch.funnel import FEWEST_TO_WIDEN, Funnel, fit_funnel, poisson_point
from smearcount.batch.summary import SHOWN_FAILED, SHOWN_UNITS, write_summary
from smearcount.batch.summary_plots import WITH_BARS
from smearcount.errors import ImageError, UsageError
from smearcount.images import writing
from smearcount.images.locks import locked
from smearcount.report import failure_row, report_columns
from smearcount.taxonomy import Taxonomy

HOSTILE = (
    "<script>alert(1)</script>",
    '"><img src=http://e.org/x>',
    "{{ 7 * 7 }}",
    "$\\frac$",
    "\u202egpj",
    "a\udcfc\nb",
)


def picture(
    taxonomy: Taxonomy, name: str, slide: str, *, area: float = 1e5, told: Any = None, **named: int
) -> tuple[Any, Any]:
    """A picture with these cells on so many square micrometres."""
    codes = ["normocyte", "neutrophil", "lymphocyte"]
    head = {"image": name, "slide": slide, "status": "ok", "model_ids": "cells-1 white-2", "version": "9.9"}
    head |= {"um_per_px_source": "flag", "um_per_px": "0.2", "width": 1000, "height": 500}
    counts = {"named": named, "unclassified": {"rbc": 3}, "excluded": {"edge": 2}, "codes": codes, "area_um2": area}
    return dict.fromkeys(report_columns(taxonomy), "") | head, {
        "warnings": [],
        "reading": [],
        "shares": {},
        "judged_um2": 0.0,
    } | counts | (told or {})


def failed(taxonomy: Taxonomy, name: str, slide: str = "", reason: str = "damaged") -> tuple[Any, Any]:
    return failure_row(name, slide, f"{name}: {reason}", taxonomy), {}


class Page(HTMLParser):
    """Tags, and the tables as lists of lists of words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.inside = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.tables[-1][-1][-1] += data

    def table(self, number: int) -> list[dict[str, str]]:
        head, *rows = self.tables[number]
        return [dict(zip(head, (" ".join(cell.split()) for cell in row), strict=True)) for row in rows]


@pytest.fixture
def write(tmp_path: Path, taxonomy: Taxonomy) -> Any:
    def written(pictures: Any, *, slides: bool) -> str:
        write_summary(tmp_path / "s.html", pictures, taxonomy, slides=slides)
        return (tmp_path / "s.html").read_text(encoding="utf-8")

    return written


@pytest.mark.parametrize("mean", [1e-4, 0.3, 1, 3.7, 20, 500.5, 12345, 3e6])
@pytest.mark.parametrize("p", [0.001, 0.025, 0.5, 0.975, 0.999])
def test_points_are_those_of_the_closed_form(p: float, mean: float) -> None:
    r = stats.poisson.ppf(p, mean)
    reached, mass = stats.poisson.cdf(r, mean), stats.poisson.pmf(r, mean)
    assert poisson_point(p, mean) == pytest.approx(max(r - (reached - p) / mass, 0), rel=1e-7, abs=1e-7)


def test_limits_grow_narrow_as_the_root_of_the_area() -> None:
    funnel = Funnel(1000, 1.0, False, 9)
    low, high = funnel.limits(100.0)
    assert (1000 - low) == pytest.approx(stats.norm.ppf(0.999) * (1000 / 100) ** 0.5, rel=0.02)
    assert (high - 1000) == pytest.approx((1000 - low), rel=0.03)
    # Four times the dispersion is twice the width, but no density is below zero.
    wide = Funnel(1000, 4.0, True, 9)
    assert wide.limits(100.0) == pytest.approx((1000 - 2 * (1000 - low), 1000 + 2 * (high - 1000)))
    assert wide.limits(100.0, sampling_only=True) == (low, high)
    assert Funnel(1000, 400.0, True, 9).limits(0.01)[0] == 0


def test_flags_are_as_rare_as_the_level_says() -> None:
    rng = np.random.default_rng(0)
    areas = rng.uniform(0.02, 0.3, 20_000)
    counts = rng.poisson(5000 * areas)
    funnel = fit_funnel(counts.tolist(), areas.tolist())
    assert funnel is not None
    assert not funnel.widened
    assert funnel.per_mm2 == pytest.approx(5000, rel=0.01)
    sides = [funnel.side(n, area) for n, area in zip(counts.tolist(), areas.tolist(), strict=True)]
    # 20 are expected on each side.
    assert 7 <= sides.count("high") <= 38
    assert 7 <= sides.count("low") <= 38


def test_slides_that_differ_widen_the_funnel_but_one_odd_slide_does_not() -> None:
    rng = np.random.default_rng(1)
    areas = [0.2] * 40
    spread = [int(n) for n in rng.poisson(1000 * rng.normal(1, 0.15, 40))]
    funnel = fit_funnel(spread, areas)
    assert funnel is not None
    assert funnel.widened
    assert sum(bool(funnel.side(n, 0.2)) for n in spread) <= 1
    assert sum(not funnel.limits(0.2, sampling_only=True)[0] <= n / 0.2 <= 6000 for n in spread) > 3
    even = [1000, 1010, 990, 1005, 995] * 4
    for few in (4, FEWEST_TO_WIDEN):
        odd = [*even[:few], 3000]
        narrow = fit_funnel(odd, areas[: len(odd)])
        assert narrow is not None
        assert narrow.side(3000, 0.2) == "high"
        assert narrow.widened == (few == FEWEST_TO_WIDEN)
        mean = sum(odd) / len(odd)
        # The odd slide alone makes the whole of the dispersion, most of which is taken from it.
        assert 1 < narrow.dispersion < 0.5 * sum((n - mean) ** 2 for n in odd) / mean / len(odd)


def test_no_funnel_of_nothing() -> None:
    assert fit_funnel([], []) is None
    assert fit_funnel([5, 5], [1.0, 1.0]) is None
    assert fit_funnel([0, 0, 0], [1.0, 1.0, 1.0]) is None
    with pytest.raises(ValueError, match="an area above zero for each of 1 counts"):
        fit_funnel([1], [0.0])
    for p, mean in ((0, 1.0), (1, 1.0), (0.5, 0.0), (0.5, float("nan"))):
        with pytest.raises(ValueError, match="a mean above zero"):
            poisson_point(p, mean)


def test_known_rows_give_known_figures(write: Any, taxonomy: Taxonomy) -> None:
    pictures = [
        picture(taxonomy, "a/1", "a", normocyte=400, neutrophil=30, lymphocyte=10),
        picture(taxonomy, "b/1", "b", normocyte=410, neutrophil=4, platelet=9),
        picture(taxonomy, "a/2", "a", normocyte=390, neutrophil=30, lymphocyte=10),
        failed(taxonomy, "b/2", "b"),
        failed(taxonomy, "c/1", "c", "too large"),
        picture(taxonomy, "d/1", "d", normocyte=900),
    ]
    text = write(pictures, slides=True)
    for words in ("6 pictures of 4 slides", "cells-1, white-2", "smearcount: 9.9", "flag 4", "not to leave them out"):
        assert words in text
    look, counts, white, bad = (Page(text).table(n) for n in range(4))
    rows = {row["slide"]: row for row in counts}
    assert list(rows) == ["all", "a", "b", "c", "d"]
    # Two pictures, 0.2 mm2, 400 + 390 + 6 without a name; limits from the tables of Garwood, by scipy.
    low, high = stats.chi2.ppf(0.025, 2 * 796) / 2, stats.chi2.ppf(0.975, 2 * 797) / 2
    assert rows["a"]["Red blood cells"] == f"796 {low:,.0f} to {high:,.0f}"
    assert rows["a"]["Red blood cells per mm²"] == f"3,980 {low / 0.2:,.0f} to {high / 0.2:,.0f}"
    assert (rows["a"]["pictures"], rows["a"]["failed"], rows["a"]["area, mm²"]) == ("2", "0", "0.2")
    assert (rows["b"]["pictures"], rows["b"]["failed"], rows["b"]["not counted"]) == ("2", "1", "2")
    assert rows["b"]["Platelets"] == "9 4.12 to 17.1"
    assert rows["c"]["Red blood cells"] == rows["c"]["Red blood cells per mm²"] == "–"
    assert rows["all"]["Red blood cells"].startswith("2,112 ")
    assert (rows["all"]["pictures"], rows["all"]["failed"]) == ("6", "2")
    # 60 of 80, with the limits of Clopper and Pearson.
    named = {row["slide"]: row for row in white}
    low, high = 100 * stats.beta.ppf(0.025, 60, 21), 100 * stats.beta.ppf(0.975, 61, 20)
    assert named["a"]["Neutrophil"] == f"75 {low:.3g} to {high:.3g}"
    assert named["a"]["with a name"] == "80 fewer than 100"
    assert named["d"]["Neutrophil"] == "–"
    assert "Monocyte" not in named["a"]
    assert {(row["slide"], row["cells"], row["is"]) for row in look} >= {("d", "Red blood cells", "high")}
    assert [(row["picture"], row["reason"]) for row in bad] == [("b/2", "b/2: damaged"), ("c/1", "c/1: too large")]


def test_warnings_and_what_is_not_counted_are_told(write: Any, taxonomy: Taxonomy) -> None:
    shares = {"countable": 0.75, "too thick": 0.25, "debris": 0.0}
    told = {"warnings": ["out of focus <b>", "too sparse"], "excluded": {"edge": 3, "too thick": 40}}
    # Of a region, a quarter of that of the other picture.
    part = {"shares": {"background": 1.0}, "judged_um2": 5e4}
    told |= {"shares": shares, "judged_um2": 2e5}
    pictures = [picture(taxonomy, name, "s", told=each) for name, each in (("a", told), ("b", part))]
    text = write([*pictures, failed(taxonomy, "c")], slides=True)
    assert Page(text).table(2) == [{"picture": "a", "warning": "out of focus <b>; too sparse"}]
    assert "Found, not counted: edge 5, too thick 40." in text
    assert "judged square by square: countable 60.0 %, too thick 20.0 %, background 20.0 %" in text
    assert "Pictures with a warning</dt><dd>1</dd>" in text


def test_how_files_were_read_is_told(write: Any, taxonomy: Taxonomy) -> None:
    part, several = {"reading": ["page 1 of 4 read"]}, {"reading": ["page 1 of 4 read", "alpha on white <b>"]}
    tolds = (part, several, {}, part)
    page = Page(write([picture(taxonomy, f"{n}", "", told=told) for n, told in enumerate(tolds)], slides=False))
    assert page.table(2) == [
        {"what was done, or not read": "page 1 of 4 read", "pictures": "3"},
        {"what was done, or not read": "alpha on white <b>", "pictures": "1"},
    ]
    assert "Every picture was taken as it is stored" in write([picture(taxonomy, "a", "")], slides=False)


def test_without_slides_each_picture_stands_for_itself(write: Any, taxonomy: Taxonomy) -> None:
    pictures = [picture(taxonomy, f"{n}.jpg", "", normocyte=500 + n) for n in range(5)]
    page = Page(write(pictures, slides=False))
    assert [row["picture"] for row in page.table(0)] == ["all", *(f"{n}.jpg" for n in range(5))]
    assert sum(tag == "img" for tag, _ in page.tags) == 3
    pooled = Page(write(pictures, slides=True)).table(0)
    assert [row["slide"] for row in pooled] == ["all", "(no slide)"]


def test_the_page_depends_on_its_rows_only(write: Any, taxonomy: Taxonomy) -> None:
    pictures = [picture(taxonomy, f"{n}.jpg", "", normocyte=500 + n) for n in range(4)]
    first = write(pictures, slides=False)
    assert write(iter(pictures), slides=False) == first
    assert write(pictures[::-1], slides=False) != first


def test_nothing_is_remote_and_names_do_nothing(write: Any, taxonomy: Taxonomy) -> None:
    pictures = [picture(taxonomy, f"{name}/1", name, normocyte=100 * n) for n, name in enumerate(HOSTILE, start=1)]
    pictures += [failed(taxonomy, f"{name}/2", name, name) for name in HOSTILE]
    text = write(pictures, slides=True)
    page = Page(text)
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "link", "base", "form", "svg"}
    for tag, given in page.tags:
        assert not [name for name in given if name.startswith("on") or name == "srcset"]
        if tag == "img":
            assert (given["src"] or "").startswith("data:image/png;base64,")
            assert given["alt"]
        if tag == "a":
            assert re.fullmatch("#[a-z]+", given["href"] or "")
    policy = next(given for tag, given in page.tags if given.get("http-equiv") == "Content-Security-Policy")
    assert (policy["content"] or "").startswith("default-src 'none'; img-src data:")
    assert not re.search(r"url\(|@import", text)
    for name in HOSTILE[:4]:
        assert html.escape(name).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in text
    assert r"\u202egpj" in text
    assert r"a\udcfc\nb" in text
    assert "\u202e" not in text


def test_what_is_too_much_is_said(write: Any, taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "_plots", lambda *_: {})
    pictures = [failed(taxonomy, f"{n:04}.jpg") for n in range(SHOWN_FAILED + 57)]
    pictures += [picture(taxonomy, f"ok{n}.jpg", "", normocyte=20) for n in range(SHOWN_UNITS)]
    text = write(pictures, slides=False)
    assert f"The first {SHOWN_FAILED} of 257; the other 57 are in the report" in text
    assert text.count(f"The first 1,000 of {SHOWN_UNITS + 257:,}; the other 257 are in the report.") == 2
    bad = Page(text).table(-1)
    assert len(bad) == SHOWN_FAILED
    assert bad[-1]["picture"] == f"{SHOWN_FAILED - 1:04}.jpg"


def test_many_slides_are_drawn_by_number(write: Any, taxonomy: Taxonomy) -> None:
    rng = np.random.default_rng(3)
    pictures = [picture(taxonomy, f"{n}", "", normocyte=int(rng.poisson(400))) for n in range(WITH_BARS)]
    for more in (0, 1):
        text = write(pictures + [picture(taxonomy, "odd", "", normocyte=900)] * more, slides=False)
        assert sum(tag == "img" for tag, _ in Page(text).tags) == 3
        assert ("of the orange ones only" in text) == bool(more)


def test_a_batch_that_failed_as_a_whole_has_a_page(write: Any, taxonomy: Taxonomy) -> None:
    text = write([failed(taxonomy, "a.jpg")], slides=False)
    assert "There is nothing to draw" in text
    assert "none ran" in text
    assert "<img" not in text
    blind = write([picture(taxonomy, f"{n}", "", area=0.0, normocyte=5) for n in range(3)], slides=False)
    assert "3 pictures have a result but no counted area" in blind


def test_the_page_is_whole_or_absent(
    tmp_path: Path, write: Any, taxonomy: Taxonomy, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [picture(taxonomy, "a", "", normocyte=9)]
    before = write(rows, slides=False)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing, "_to_disk", full)
    with pytest.raises(ImageError, match=r"s\.html: can't be written \(No space left on device\)"):
        write(rows * 2, slides=False)
    assert (tmp_path / "s.html").read_text() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.html"]


def test_a_batch_writes_its_summary(tmp_path: Path) -> None:
    folder = smears(tmp_path / "in", "x/a.png", "x/b.png", "y/a.png")
    (folder / "y" / "bad.png").write_bytes(b"no picture")
    page, left = tmp_path / "s.html", tmp_path / f".s.html.{'0' * 16}.part"
    left.touch()
    job = BatchJob(folder, tmp_path / "r.csv", recursive=True, summary=page)
    outcome = run_batch(DiscMaker(), job)
    assert (outcome.done, len(outcome.failed)) == (3, 1)
    assert not left.exists()
    first = page.read_bytes()
    assert b"4 pictures of 2 slides" in first
    assert [row["picture"] for row in Page(first.decode()).table(-1)] == ["y/bad.png"]
    assert run_batch(DiscMaker(), job).reused >= 3
    assert page.read_bytes() == first
    for target in (tmp_path / "r.html.csv", tmp_path / "s.txt"):
        with pytest.raises(UsageError, match=r"--summary takes a name that ends in \.html, \.htm"):
            run_batch(DiscMaker(), BatchJob(folder, tmp_path / "r.csv", recursive=True, summary=target))
    with locked([page]), pytest.raises(UsageError, match=r"s\.html: another run"):
        run_batch(DiscMaker(), job)
