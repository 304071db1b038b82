import json
import subprocess
from pathlib import Path

import pytest

from turtles.guests import benchmarks
from turtles.tools import bars, compare, exit_bench, page
from turtles.tools.levels import Line
from turtles.tools.measure import ClockCheck, Reader, Results, Sample, Settings

INNER = (*bars.USER_ROWS, *bars.KERNEL_ROWS)


def sample(program: str, level: int, row: str, ns: float, repeat: int = 1, pair: int = 0) -> Sample:
    return Sample(program, level, pair, repeat, row, ns)


def everything(user: float = 2.0) -> list[Sample]:
    """Turtles takes `user` of native in user rows, and a fifth of TCG elsewhere."""
    rows = [*INNER, "cpuid"]
    found = [sample("native", 0, row, 10) for row in rows]
    found += [sample("turtles", n, row, 10 * user) for n in (1, 2) for row in rows]
    found += [sample("tcg", n, row, 50 * user) for n in (1, 2) for row in rows]
    for level, row in [(1, "boot"), (2, "tower"), *((2, p) for p in bars.PROGRAMS)]:
        found += [sample("turtles", level, row, 1), sample("tcg", level, row, 5)]
    return found


def test_the_first_repeat_warms_up_where_there_is_a_second() -> None:
    warm = [sample("turtles", 1, "alu", ns, repeat) for repeat, ns in enumerate((900, 3, 5, 4))]
    assert bars.medians(warm) == {("turtles", 1, "alu"): 4}
    assert bars.medians(warm[:1]) == {("turtles", 1, "alu"): 900}


def test_every_bar_is_reached_by_figures_within_it() -> None:
    found = bars.all_bars(bars.medians(everything()), cpuid_exit_ns=2900)
    assert [bar.verdict for bar in found] == ["reached"] * 8
    assert found[2].value == pytest.approx(2.0)
    assert found[4].value == pytest.approx(1.0)


def test_one_bad_row_is_not_hidden_by_the_mean() -> None:
    samples = [s for s in everything(1.0) if (s.program, s.level, s.row) != ("turtles", 1, "matmul")]
    bar = bars.all_bars(bars.medians([*samples, sample("turtles", 1, "matmul", 51)]), None)[2]
    assert bar.value is not None and bar.limit is not None and bar.value < bar.limit
    assert bar.reached is False


def test_a_slow_l1_does_not_make_l2_good() -> None:
    found = bars.all_bars(bars.medians(everything(3.0)), None)
    assert found[2].reached is False
    assert found[4].value == pytest.approx(1.0) and found[4].reached is False


def test_a_missing_row_is_no_figure() -> None:
    samples = [s for s in everything() if (s.program, s.level, s.row) != ("tcg", 1, "fork")]
    found = bars.all_bars(bars.medians(samples), None)
    assert [bar.what for bar in found if bar.reached is None] == [found[3].what, found[6].what]


def test_figures_of_one_program_count_once() -> None:
    samples = [
        sample(p, 2, row, ns) for p, ns in (("turtles", 1), ("tcg", 4)) for row in ("gzip", "openssl.a")
    ]
    samples += [sample("turtles", 2, "openssl.b", 1), sample("tcg", 2, "openssl.b", 16)]
    parts = dict(bars.group(bars.medians(samples), ("turtles", 2), ("tcg", 2), bars.PROGRAMS))
    assert parts == {"gzip": pytest.approx(1 / 4), "openssl": pytest.approx(1 / 8)}


def test_console_lines_become_samples_of_their_level() -> None:
    results = Results()
    reader = Reader("turtles", 3, 1, results, lambda row: None)
    for level, text in [
        (1, "L1: Linux 6.1 on x"),
        (1, "BENCH repeat 1 0"),
        (1, "[  1.0] noise BENCH alu 10 2.500"),
        (2, "BENCH alu 10 3.000"),
        (2, "BENCH alu ten 3"),
    ]:
        reader.line(Line(level, text))
    assert results.samples == [
        Sample("turtles", 1, 3, 1, "alu", 2.5),
        Sample("turtles", 2, 3, 0, "alu", 3.0),
    ]
    assert set(reader.inits) == {1}


def test_durations() -> None:
    assert [bars.duration(ns) for ns in (0.25, 999, 1000, 2.5e6, 61e9)] == [
        "0.25 ns",
        "999.00 ns",
        "1.00 µs",
        "2.50 ms",
        "61.00 s",
    ]


def test_clocks() -> None:
    assert ClockCheck("tcg", 1, 0, 10.009, 10.0).holds is True
    assert ClockCheck("tcg", 1, 0, 9.98, 10.0).holds is False
    assert ClockCheck("tcg", 1, 0, 0.5, 1.0).holds is None


def test_the_micro_benchmarks_print_what_the_reader_reads(tmp_path: Path) -> None:
    binary = benchmarks.ubench(tmp_path)
    assert benchmarks.ubench(tmp_path) == binary
    output = subprocess.run(
        [binary, "run", "0.001"], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    results = Results()
    reader = Reader("native", 0, 0, results, lambda row: None)
    for text in output.splitlines():
        reader.line(Line(1, text))
    assert [s.row for s in results.samples] == [*INNER, "cpuid"]
    assert all(s.level == 0 and s.ns > 0 for s in results.samples)
    assert subprocess.run([binary, "time", "false", "false"], capture_output=True, timeout=60).returncode == 1


def test_a_page_stands_alone(tmp_path: Path) -> None:
    results = Results(everything(), [ClockCheck("tcg", 2, 0, 9.0, 10.0)], ["<qemu> ended with status 1"])
    bench = compare.Bench("peers", Settings(0.1, 2), 1, results)
    found = json.loads(json.dumps(bench.as_json()))
    assert len(found["samples"]) == len(results.samples)
    files = page.write(found, tmp_path / "peers.html")
    text = files[0].read_text()
    assert "&lt;qemu&gt; ended" in text and "WRONG" in text and text.count("reached</td>") == 7
    assert "href=" not in text.replace("xlink:href=", "") and "src=" not in text
    assert all(file.exists() for file in files)


def test_costs_of_exits_have_their_parts() -> None:
    rows = {(c.level, c.what): c for level in (1, 2) for c in exit_bench.run_loops(level)}
    assert {what for _, what in rows} == {what for what, _ in exit_bench.ROWS.values()}
    single, nested = rows["L1", "CPUID"], rows["L2", "CPUID"]
    # The embedded hypervisor executes CPUID itself to answer; its VMRESUME is the only other exit.
    assert (round(single.exits_l1), round(nested.exits_l1), round(nested.exits_l2)) == (1, 2, 1)
    assert rows["L1", "VMREAD"].exits_l1 < 0.1
    for cost in rows.values():
        assert cost.clock >= cost.in_l1 + cost.in_l2 > 0
        assert cost.instructions >= 1
