"""One tiny guest per VT-x behaviour; each file cites the SDM paragraph that it shows."""

from pathlib import Path

import pytest

from tests.guests.script import Script

GUESTS = sorted((Path(__file__).parent / "vtx").glob("*.S"))


@pytest.mark.parametrize("source", GUESTS, ids=lambda p: p.stem)
def test_behaviour(source: Path, tmp_path: Path) -> None:
    assert Script(source, tmp_path).run() > 0


@pytest.mark.parametrize("source", GUESTS, ids=lambda p: p.stem)
def test_guest_cites_its_source(source: Path) -> None:
    assert "SDM" in source.read_text().splitlines()[0] or "unrestricted" in source.read_text()
