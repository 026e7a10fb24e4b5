"""The fields at which the same counts are asked for in another light."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest

from smearcount import robustness
from smearcount.robustness import spread_fields


@pytest.mark.parametrize(("number", "expected"), [(40, [10, 10, 10, 3]), (10, [3, 3, 2, 2]), (3, [1, 1, 1])])
def test_every_look_has_as_many_fields(monkeypatch: pytest.MonkeyPatch, number: int, expected: list[int]) -> None:
    looks = {"a": 30, "b": 20, "c": 12, "d": 3}
    fields = [SimpleNamespace(source=look, row=row) for look, n in looks.items() for row in range(n)]
    monkeypatch.setattr(robustness, "labelled_fields", lambda *_: fields)
    chosen = spread_fields(["any"], number)
    assert list(Counter(field.source for field in chosen).values()) == expected
    rows = [field.row for field in chosen if field.source == "a"]
    assert rows[0] == 0
    assert len(rows) == 1 or rows[-1] == 29
