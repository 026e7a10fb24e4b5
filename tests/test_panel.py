"""Texts of a panel stay in their width and lines, with the shipped font and without it."""

from __future__ import annotations

import pytest

from smearcount import panel

LONG = "W" * 300 + " a_very-long.name \u00b5\u00fc\u00df\u2013 " * 40


@pytest.mark.usefixtures("font_kind")
@pytest.mark.parametrize("text", ["", "x", "Red blood cells", LONG, "W" * 5000, "\u7d30\u80de " * 200])
def test_wrapped_text_fits_its_width_and_lines(text):
    face = panel.face_for(13, 338)
    for font, width in ((face.plain, 70.0), (face.bold, 200.0)):
        shown = panel.wrap(panel.letters(text, face), font, width, 3)
        assert 1 <= len(shown) <= 3
        assert all(font.getlength(line) <= width for line in shown)
        assert ("\u2026" in shown[-1]) == (len(text) > 100)


def test_wrapping_loses_no_word():
    face = panel.face_for(13, 338)
    text = "one field of view holds about a hundred cells"
    assert " ".join(panel.wrap(text, face.plain, 90, 9)) == text
