"""`turtles trace`: figures of made-up and of real runs, files that are damaged, and that runs repeat."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.tools.exits import HANDLE, SWITCH, Story
from turtles.l0.tactics import Tactics
from turtles.l0.trace import SIZE
from turtles.silicon import ExitReason as R
from turtles.tools import tracefile
from turtles.tools.cli import main
from turtles.tools.demo import embedded_options
from turtles.tools.machine import Rig
from turtles.tools.options import Failure
from turtles.tools.trace import tree_lines
from turtles.tools.tracing import Group, percentile, summarise


def trace(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["trace", *map(str, arguments)])


def embedded(path: Path, depth: int, tactics: Tactics | None = None) -> Path:
    """The embedded tower's trace under virtual time."""
    options = replace(embedded_options(depth, "virtual", None), trace=str(path), tactics=tactics or Tactics())
    result = Rig(options, lambda data: None).run()
    assert not result.outcome.message, result.outcome
    return path


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hypervisor in a hypervisor, and its guest."""
    return embedded(tmp_path_factory.mktemp("tower") / "trace", 2)


# --- arithmetic ---


def test_percentiles_are_nearest_ranks() -> None:
    assert [percentile(list(range(1, 201)), p) for p in (50, 90, 99)] == [100, 180, 198]
    assert [percentile([7], p) for p in (50, 99)] == [7, 7]
    assert percentile([], 50) == 0


def test_factors_and_sums() -> None:
    story = Story()
    for extra in (0, 1, 2):
        story.l2(R.CPUID).l1(*[R.VMREAD] * extra, R.VMRESUME)
    story.l2(R.CPUID)
    summary = summarise([story.records], 1)
    group = summary.groups[2, "CPUID", "L1"]
    assert (group.count, group.unfinished) == (4, 1), "L2 never ran after the last one"
    assert group.exits_of(1) == 2.0
    assert group.below == {(1, "VMREAD"): 3, (1, "VMRESUME"): 3}
    assert group.percentiles()[1] == [14, 21, 21]
    assert group.total.l0_ns == 9 * HANDLE and group.total.switching_ns == 18 * SWITCH
    assert [x.number for x in summary.slowest] == [5]


def groups_of(path: Path) -> dict[tuple[int, str, str], Group]:
    return summarise([tracefile.read(str(path)).records(0)], 0).groups


# --- real runs ---


def test_runs_under_virtual_time_have_the_same_trees(tower: Path, tmp_path: Path) -> None:
    again = embedded(tmp_path / "trace", 2)
    records = [tracefile.read(str(path)).blocks for path in (tower, again)]
    assert records[0] == records[1]
    first, second = (json.loads(trace(path, "--json").stdout) for path in (tower, again))
    assert first["run"].pop("end")["ending"] == second["run"].pop("end")["ending"]
    assert first == second
    assert len(first["slowest"]) == 3


def test_the_tower_has_three_levels(tower: Path) -> None:
    groups = groups_of(tower)
    cpuid = groups[3, "CPUID", "L2"]
    assert cpuid.count > 50
    assert cpuid.below[2, "VMRESUME"] == cpuid.count, "L2 resumes L3 once for each of them"
    assert groups[2, "VMREAD", "L1"].exits_of(1) == 1.0, "L1 does nothing but resume L2"
    stats = summarise([tracefile.read(str(tower)).records(0)], 0)
    times = {name: ns for name, ns, _ in stats.shares()}
    assert times["L0"] == times["switching"] == 0, "virtual time passes in guests alone"
    assert times["L3"] and times["L2"] and times["L1"]


def test_without_vmcs_shadowing_an_exit_multiplies(tmp_path: Path) -> None:
    on = groups_of(embedded(tmp_path / "on", 1))
    off = groups_of(embedded(tmp_path / "off", 1, Tactics(shadow_vmcs=False)))
    key = 2, "CPUID", "L1"
    assert on[key].count == off[key].count
    assert on[key].below[1, "VMREAD"] == 0
    assert off[key].below[1, "VMREAD"] >= off[key].count
    assert off[key].exits_of(1) > on[key].exits_of(1) + 2


# --- what is shown ---


def test_tables(tower: Path) -> None:
    text = trace(tower, "--slowest", 1).stdout
    assert "L3 inferred" in text
    for piece in (
        "virtual clock",
        "powered off",
        "Where the time went",
        "p99",
        "The slowest",
        "L3 CPUID (L2)",
    ):
        assert piece in text, text
    assert "\n  L3 EPT_VIOLATION at 0x" in text


def test_lines(tower: Path) -> None:
    lines = trace(tower, "--lines").stdout.splitlines()
    assert lines[0].split()[1:4] == ["retired", "level", "reason"]
    assert len(lines) - 1 == sum(1 for _ in tracefile.read(str(tower)).records(0))
    assert {line.split()[1] for line in lines[1:]} == {"L1", "L2"}, "as L0 knows them"


def test_exits_alike_are_one_line_of_a_tree() -> None:
    story = Story().l2(R.CPUID).l1(*[R.VMREAD] * 3, R.VMRESUME).l2(R.HLT)
    root = summarise([story.records], 1).slowest[0]
    assert [line.split(":")[0].strip() for line in tree_lines(root)] == [
        "L2 CPUID at 0x1000, by L1",
        "L1 VMREAD ×3",
        "L1 VMRESUME at 0x1000, by L0",
    ]


# --- files ---


def test_a_file_that_ends_early(tower: Path, tmp_path: Path) -> None:
    data = tower.read_bytes()
    whole = list(tracefile.read(str(tower)).records(0))
    cut = tmp_path / "cut"
    for length in (len(data) - 1, len(data) // 2, len(data) // 3, 40 * SIZE):
        cut.write_bytes(data[:length])
        found = tracefile.read(str(cut))
        records = list(found.records(0))
        assert found.ending is None
        assert records == whole[: len(records)]
        assert len(records) >= length // SIZE - 16
    assert "the trace ends early" in trace(cut).stdout


@pytest.mark.parametrize(
    "data", [b"", b"TURTLES\x01", b"\x7fELF" + bytes(100), b"TURTLES\x01\xff\xff\xff\xff"]
)
def test_what_is_no_trace(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(data)
    with pytest.raises(Failure, match="this is no trace"):
        tracefile.read(str(path))


def test_a_trace_of_another_version(tower: Path, tmp_path: Path) -> None:
    other = tmp_path / "file"
    other.write_bytes(tower.read_bytes().replace(b'"reason"', b'"raison"', 1))
    with pytest.raises(Failure, match="another version"):
        tracefile.read(str(other))


def test_errors_of_the_command(tower: Path, tmp_path: Path) -> None:
    assert trace(tmp_path / "none").exit_code == 1
    assert trace(tower, "--lines", "--json").exit_code == 2
    result = trace(tower, "--perfetto", tmp_path / "no" / "file")
    assert result.exit_code == 1 and "No such file" in result.stderr
