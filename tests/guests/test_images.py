from __future__ import annotations

from pathlib import Path

import pytest

from turtles.guests.images import RECIPES, prune, superseded


def test_only_sets_of_this_version_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURTLES_CACHE", str(tmp_path))
    assert superseded() == []
    current = [tmp_path / "images" / f"{recipe.name}-{recipe.key}" for recipe in RECIPES.values()]
    old = [tmp_path / "images" / name for name in ("bench-0123456789abcdef", "tower-fedcba9876543210")]
    for directory in (*current, *old):
        directory.mkdir(parents=True)
        (directory / "root.img").touch()
    assert prune(lambda what, share: None) == old
    assert sorted((tmp_path / "images").iterdir()) == sorted(current)
