"""The export to Perfetto, parsed back with Perfetto's own messages."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from typing import Any

import pytest

from tests.tools.exits import Story
from tests.tools.test_tree import l3_story
from turtles.silicon import ExitReason as R
from turtles.tools import perfetto
from turtles.tools.tree import Forest

messages = pytest.importorskip("perfetto.protos.perfetto.trace.perfetto_trace_pb2")


def exported(story: Story) -> Any:
    file = io.BytesIO()
    perfetto.export([story.records], file)
    return messages.Trace.FromString(file.getvalue())


def slices(trace: Any) -> dict[str, list[tuple[int, int, str]]]:
    """By track: begin, end and name of each slice, in order of their ends; checks that they nest."""
    tracks: dict[int, str] = {}
    names: dict[int, str] = {}
    open_: dict[int, list[tuple[int, str]]] = defaultdict(list)
    found: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
    latest: Counter[int] = Counter()
    for packet in trace.packet:
        names |= {entry.iid: entry.name for entry in packet.interned_data.event_names}
        if packet.HasField("track_descriptor"):
            tracks[packet.track_descriptor.uuid] = packet.track_descriptor.name
        if not packet.HasField("track_event"):
            continue
        event = packet.track_event
        track = event.track_uuid
        assert tracks[track], "a track is described before it is used"
        assert packet.timestamp >= latest[track], "events of a track are in order"
        latest[track] = packet.timestamp
        if event.type == messages.TrackEvent.TYPE_SLICE_BEGIN:
            open_[track].append((packet.timestamp, names[event.name_iid]))
        else:
            begin, name = open_[track].pop()
            found[tracks[track]].append((begin, packet.timestamp, name))
    assert not any(open_.values())
    return found


def test_a_slice_for_each_exit() -> None:
    found = slices(exported(l3_story()))
    records = l3_story().records
    assert [name for *_, name in found["exits of L3"]] == ["CPUID"]
    assert [name for *_, name in found["exits of L2"]] == ["CPUID", "VMLAUNCH", "VMREAD", "VMRESUME"]
    assert Counter(name for *_, name in found["exits of L1"]) == {"VMRESUME": 4, "VMPTRLD": 3, "VMLAUNCH": 1}
    begin, end, _ = found["exits of L3"][0]
    assert (begin, end) == (records[5].exit_ns, records[-1].entry_ns)


def test_who_ran() -> None:
    story = l3_story()
    forest = Forest()
    list(forest.grow(story.records))
    totals: Counter[str] = Counter()
    for begin, end, name in slices(exported(story))["running"]:
        totals[name] += end - begin
    assert totals == {
        "L0": forest.spent.l0_ns,
        **{f"L{level}": forest.spent.ran_ns[level] for level in (1, 2, 3)},
    }


def test_facts_of_an_exit() -> None:
    trace = exported(Story().l2(R.CPUID).l1(R.VMREAD, R.VMRESUME).l2(R.HLT))
    keys = {e.iid: e.name for p in trace.packet for e in p.interned_data.debug_annotation_names}
    event = next(p.track_event for p in trace.packet if p.track_event.debug_annotations)
    facts = {keys[a.name_iid]: a for a in event.debug_annotations}
    assert facts["rip"].pointer_value == 0x1000
    assert facts["handled by"].string_value == "L1"
    assert facts["instructions"].uint_value == 14


def test_a_long_trace_is_written_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exported(l3_story())
    monkeypatch.setattr(perfetto, "_FLUSH_AT", 3)
    assert exported(l3_story()) == whole
