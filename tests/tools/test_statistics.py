from __future__ import annotations

import io
import json

from rich.console import Console

from turtles.l0.stats import Level, Row
from turtles.tools.statistics import RunFigures, as_json, exit_table

ROWS = [
    Row(2, "CPUID", "L1", 10, 500_000, 12_340),
    Row(1, "VMRESUME", "L0", 30, 1_500_000),
    Row(1, "CPUID", "L0", 5, 20_000),
    Row(1, "HLT", "L0", 0, 0),
]


def test_table_has_rows_by_level_and_time() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(exit_table(ROWS))
    lines = [line.split() for line in console.export_text().splitlines()[2:] if line.strip()]
    assert [(w[0], w[1], w[2], w[3]) for w in lines] == [
        ("L1", "VMRESUME", "L0", "30"),
        ("L1", "CPUID", "L0", "5"),
        ("L2", "CPUID", "L1", "10"),
    ]
    assert lines[2][-6:] == ["10", "100.0%", "0.5", "100.0%", "50.0", "1,234"]


def test_json_says_the_same() -> None:
    figures = RunFigures("powered off", 2.0, 50_000_000, {"memory": 1})
    data = json.loads(as_json(ROWS, [Level(1, 5000, 40), Level(2, 7000, 60)], figures))
    assert data["run"] == {
        "ending": "powered off",
        "seconds": 2.0,
        "retired": 50_000_000,
        "mips": 25.0,
        "memory": 1,
    }
    assert [(e["level"], e["reason"], e["count"]) for e in data["exits"]] == [
        (1, "VMRESUME", 30),
        (1, "CPUID", 5),
        (2, "CPUID", 10),
    ]
    assert data["exits"][2]["mean_ns"] == 50_000
    assert data["exits"][2]["mean_retired"] == 1234
    assert data["levels"][1] == {"level": 2, "ran_ns": 7000, "retired": 60}
