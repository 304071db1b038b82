from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.tools.exits import Story
from turtles.l0.stats import Row
from turtles.silicon import ExitReason
from turtles.tools import marks
from turtles.tools.marks import Mark, Span
from turtles.tools.options import Failure
from turtles.tools.paper import breakdown, command, page, plan, published, runs
from turtles.tools.paper.analysis import Analysis, clock_holds
from turtles.tools.paper.command import PaperOptions
from turtles.tools.paper.journal import Journal, version
from turtles.tools.paper.plan import DEFAULT, NATIVE, NESTED, Configuration


def sample(program: str, level: int, row: str, ns: float, repeat: int = 1) -> dict[str, Any]:
    return {"program": program, "level": level, "pair": 0, "repeat": repeat, "row": row, "ns": ns}


def span(
    level: int, row: str, ns: int, exits: tuple[Row, ...] = (), guest: tuple[int, ...] = (0, 0, 0)
) -> dict[str, Any]:
    head = {"level": level, "row": row, "repeat": 1, "operations": 10, "begin_ns": 0, "end_ns": ns}
    return {**head, **Span(ns, (0, 5, 7), guest, exits).as_json()}


def made(
    configuration: str, samples: list[dict[str, Any]], spans: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    return {
        "configuration": configuration,
        "options": "{}",
        "version": "v",
        "round": 0,
        "started": "now",
        "seconds": 2.0,
        "samples": samples,
        "clocks": [{"program": configuration, "level": 1, "pair": 0, "guest_s": 10.02, "host_s": 10.0}],
        "failures": [],
        "spans": spans or [],
        "breakdown": [],
        "run": None,
    }


def everything(build: float = 105.0, redis: float = 103.0) -> list[dict[str, Any]]:
    """L1 takes 100 s for each program, and 2 µs for a CPUID."""
    l1 = [sample(DEFAULT, 1, row, 100e9) for row in ("build", "redis")]
    l2 = [sample(DEFAULT, 2, "build", build * 1e9), sample(DEFAULT, 2, "redis", redis * 1e9)]
    loops = [sample(DEFAULT, n, "cpuid", ns) for n, ns in ((1, 2000.0), (2, 7000.0))]
    third = made(plan.THIRD, [sample(plan.THIRD, 3, "cpuid", 70_000.0)])
    shadow = made("shadow-on-ept", [sample("shadow-on-ept", 2, "build", 210e9)])
    return [made(DEFAULT, [*l1, *l2, *loops]), third, shadow]


def test_bars() -> None:
    found = [bar for bar, _ in Analysis(everything()).bars()]
    values = [bar.value for bar in found]
    assert values[:3] == [pytest.approx(5.0), pytest.approx(100 - 10000 / 103), pytest.approx(3.5)]
    assert values[3] is None and values[4:] == [pytest.approx(2.0), pytest.approx(10.0)]
    assert [bar.verdict for bar in found] == ["reached"] * 3 + ["not measured", "measured", "reached"]


def test_bars_that_are_missed() -> None:
    records = everything(build=107, redis=105)
    records[0]["samples"][4]["ns"] = 3001.0  # single level is too slow: the ratio does not count
    found = [bar for bar, _ in Analysis(records).bars()]
    assert [bar.reached for bar in found[:3]] == [False, False, False]
    assert found[2].value is not None and found[2].limit is not None and found[2].value < found[2].limit


def test_costs_and_shares() -> None:
    l1 = (Row(1, "CPUID", "L0", 4, 8000), Row(1, "HLT", "L0", 1, 200))
    l2 = (*l1, Row(2, "CPUID", "L1", 10, 70_000, 900), Row(2, "EPT_VIOLATION", "L0", 5, 5000))
    records = [
        made(DEFAULT, [], [span(1, "cpuid", 9000, l1), span(2, "build", 1200, l2, (0, 100, 600))]),
        made("traced all", []),
    ]
    records[1]["breakdown"] = [
        {
            **{"level": 2, "row": "cpuid", "operations": 10, "total_ns": 100, "guest_ns": 10, "below_ns": 20},
            **{"l0_ns": 50, "switch_ns": 20, "idle_ns": 0, "switches": 20, "retired": [0, 1, 2]},
            **{"caused": 1.0, "caused_mean": 1.0},
        }
    ]
    a = Analysis(records)
    single, nested = a.exit_cost(DEFAULT, 1, "CPUID"), a.exit_cost(DEFAULT, 2, "CPUID")
    assert single is not None and (single.count, single.ns) == (4, 2000)
    assert nested is not None and (nested.count, nested.ns, nested.retired) == (10, 7000, 90)
    assert a.exit_cost(DEFAULT, 2, "EPT violation") is None  # L0 handled them all
    shares = a.shares(DEFAULT, "build")
    # 1200 ns less 200 asleep; 20 exits in the span at 1 ns each.
    assert shares is not None
    assert (shares.guest, shares.l1, shares.l0, shares.switch) == pytest.approx((60, 10, 28, 2))
    assert [bar.value for bar, _ in a.bars()][3] == 1.0


def test_marks_become_spans() -> None:
    def mark(ns: int, line: str, exits: int) -> str:
        rows = [[1, "CPUID", "L0", exits, exits * 100, 0]] if exits else []
        told = {"ns": ns, "retired": [0, ns * 2, 0], "guest_ns": [0, ns // 2, 0], "exits": rows}
        return json.dumps({**told, "level": 1, "line": line})

    lines = [
        mark(5, "[ 0.1] Linux", 0),
        mark(10, "BENCH repeat 1 0", 0),
        mark(100, "BENCH begin.cpuid 1 0", 2),
        mark(500, "BENCH cpuid 30 4.5", 32),
        mark(600, "BENCH fault 30 4.5", 33),
        '{"ns": 700, "ret',
    ]
    (found,) = runs.spans(marks.read(lines))
    assert (found["row"], found["level"], found["repeat"], found["operations"]) == ("cpuid", 1, 1, 30)
    s = Span.from_json(json.loads(json.dumps(found)))
    assert (s.ns, s.retired, s.guest_ns) == (400, (0, 800, 0), (0, 200, 0))
    assert s.exits == (Row(1, "CPUID", "L0", 30, 3000),)
    assert s.l0_ns == 200 and s.count(1) == 30 and s.count(2) == 0


def test_a_span_leaves_out_what_did_not_happen() -> None:
    rows = (Row(1, "IO", "L0", 5, 50), Row(1, "CPUID", "L0", 1, 9))
    begin, end = Mark(0, (0, 0, 0), (0, 0, 0), rows, 1, ""), Mark(9, (0, 1, 0), (0, 9, 0), rows, 1, "")
    assert marks.between(begin, end).exits == ()


def test_clocks_by_what_leaves_the_machine() -> None:
    def mark(ns: int, level: int, line: str) -> Mark:
        return Mark(ns, (0, 0, 0), (0, 0, 0), (), level, line)

    said = [
        mark(1_000_000_000, 1, "BENCH clock 1 500000000"),
        mark(2_000_000_000, 3, "BENCH clock 1 0"),
        mark(22_000_000_000, 3, "BENCH clock 1 21000000000"),
        mark(11_000_000_000, 1, "BENCH clock 1 10520000000"),
    ]
    third, first = runs.clocks("a", 4, said)
    assert (first.level, first.pair, first.host_s) == (1, 4, 10.0)
    assert first.guest_s == pytest.approx(10.02)
    assert clock_holds(first) is False
    assert (third.level, third.holds, clock_holds(third)) == (3, False, None)


def test_shares_of_recorded_exits() -> None:
    """An exit of L2 that L1 handles with two exits of its own, twice; then another one."""
    story = Story()
    for _ in range(2):
        story.l2(ExitReason.CPUID).l1(ExitReason.CPUID, ExitReason.VMRESUME)
    found = story.l2(ExitReason.IO).records
    heads = [{"level": 2, "row": "cpuid", "operations": 2, "begin_ns": 0, "end_ns": found[-1].exit_ns}]
    (b,) = breakdown.of_records(found, heads)
    assert (b.caused, b.caused_mean) == (2, 2)
    assert b.total_ns == b.guest_ns + b.below_ns + b.l0_ns + b.switch_ns + b.idle_ns
    assert breakdown.of_records(found, [{**heads[0], "begin_ns": found[-1].exit_ns + 1}]) == []


def test_an_ended_bench_goes_on(tmp_path: Path) -> None:
    file = tmp_path / "made" / "journal.jsonl"
    first, second = Configuration("a", (1,)), Configuration("b", (2,), expected_s=7)
    journal = Journal(file, "v")
    assert command.schedule([first, second], 2, journal) == [(0, first), (0, second), (1, first), (1, second)]
    often = Configuration("a", (1,), times=3)
    spread = command.schedule([often, second, second], 1, journal)
    assert [(n, c.name) for n, c in spread] == [(0, "a"), (1, "a"), (0, "b"), (2, "a"), (0, "b")]
    assert runs.options_key(often) == runs.options_key(first)
    done = {**made("a", []), "options": runs.options_key(first)}
    journal.add(done)
    journal.add({**done, "round": 1, "failures": ["it fell over"]})
    with file.open("a") as f:
        f.write('{"configuration": "b", "opt')  # killed while it wrote
    journal = Journal(file, "v")
    todo = command.schedule([first, second], 2, journal)
    assert todo == [(0, second), (1, first), (1, second)]
    assert command.time_left(todo, journal) == 7 + 2.0 + 7
    journal.add({**done, "configuration": "b", "options": runs.options_key(second)})
    assert [r["configuration"] for r in Journal(file, "v").current()] == ["a", "b"]
    # Another version has it all to do again, but knows how long it takes; so has another size.
    assert Journal(file, "w").current() == [] and Journal(file, "w").seconds("a", done["options"]) == 2.0
    assert not journal.has("a", runs.options_key(Configuration("a", (1,), scale=2.0)), 0)
    journal.forget()
    assert Journal(file, "v").current() == []


def test_a_version_is_what_decides_a_run() -> None:
    assert version("images") == version("images") != version("others")


def test_plans() -> None:
    for found in (plan.full(), plan.quick(), plan.embedded()):
        names = [c.name for c in found]
        assert len(set(names)) == len(names)
    quick = {c.name: c for c in plan.quick()}
    assert {NATIVE, DEFAULT, NESTED, plan.THIRD, *plan.OTHER_MODES} <= quick.keys()
    assert [c.name for c in quick.values() if c.programs] == [NATIVE, DEFAULT]
    assert quick[DEFAULT].settings.append.endswith("bench.levels=2 bench.at=1,2")
    assert "bench.rows=cpuid,fault bench.programs=build:4" in quick[DEFAULT].settings.append
    assert "bench.programs=0 " in quick[NESTED].settings.append
    with pytest.raises(Failure, match="no configuration 'nothing'"):
        PaperOptions(only=("nothing",)).plan()
    assert [c.scale for c in PaperOptions(only=(DEFAULT,), scale=0.5).plan()] == [0.5]


def test_a_page_of_everything(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="figures need the extra `bench`")
    journal = Journal(tmp_path / "j", "v")
    records = everything()
    records[0]["options"] = json.dumps({"programs": ["build:8", "redis:1500"]})
    a = Analysis(records)
    found = {**command.result(PaperOptions(), journal, "6.1", ["<L3> fell"])[0], **page.as_json(a)}
    files = page.write(json.loads(json.dumps(found)), a, tmp_path / "p.html")
    assert {f.suffix for f in files} == {".html", ".svg", ".png"} and len(files) == 15
    assert all(f.stat().st_size for f in files)
    text = files[0].read_text()
    assert "<td>105</td><td>–</td><td>102 (-2.9 %)</td>" in text  # 10500 transactions in 100 s, in 103 s
    assert "href=" not in text.replace("xlink:href=", "") and "src=" not in text
    assert "&lt;L3&gt; fell" in text and "WRONG" in text and published.MARK in text
    out = io.StringIO()
    command.show(a, ["it"], Console(file=out, width=200))
    assert "reached" in out.getvalue() and "failed: it" in out.getvalue()


def page_text(directory: Path) -> str:
    return (directory / "paper.html").read_text()


def test_the_embedded_tower_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TURTLES_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "paper.json"

    def bench() -> str:
        command_line = [sys.executable, "-m", "turtles", "bench", "paper", "--embedded", "--json", str(out)]
        done = subprocess.run(command_line, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stderr

    assert "embedded L1, run 1 of 1" in bench()
    found = json.loads(out.read_text())
    figures = {(m["configuration"], m["level"]): m["ns"] for m in found["medians_ns"] if m["row"] == "cpuid"}
    assert figures.keys() == {(f"embedded L{n}", n) for n in (1, 2, 3)}
    assert 0 < figures[("embedded L1", 1)] < figures[("embedded L2", 2)] < figures[("embedded L3", 3)]
    bars = {bar["what"]: bar for bar in found["bars"]}
    caused = bars["exits of L1 for one CPUID exit of L2, its VMRESUME counted"]["value"]
    assert caused >= 1 and caused == int(caused)
    spans = [s for r in found["records"] for s in r["spans"]]
    assert [s["level"] for s in spans] == [1, 2, 3]
    assert all(s["ns"] > 0 and sum(s["retired"]) > s["operations"] for s in spans)
    assert found["published"]["kernbench_s"] == list(published.KERNBENCH_S)
    assert "L0: compiled" in page_text(tmp_path) or "L0: Python" in page_text(tmp_path)
    assert "not measured here yet" in page_text(tmp_path)
    # Ended while the last run was written: only that one is run again.
    (journal,) = (tmp_path / "cache/bench").iterdir()
    journal.write_text(journal.read_text()[:-20])
    again = bench()
    assert "embedded L3, run 1 of 1" in again and "embedded L1" not in again and "embedded L2" not in again
    assert "run 1 of" not in bench()
