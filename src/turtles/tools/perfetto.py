"""A trace as Perfetto's protobuf, for ui.perfetto.dev or its trace processor.

One process a core; in it one track a level with a slice for each exit, from the exit until the level runs
again, named by its reason; and one that shows who ran. The messages are those of the package `perfetto`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import IO, TYPE_CHECKING, Any, Final

from turtles.l0.trace import ExitRecord
from turtles.tools.options import Failure
from turtles.tools.tracing import handler_text, reason_text
from turtles.tools.tree import LEVELS, Exit, Forest

if TYPE_CHECKING:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket

_FLUSH_AT: Final = 8192
_RUNNING: Final = LEVELS  # number of the track that shows who ran
_FACTS: Final = ("rip", "qualification", "handled by", "instructions")


class Exporter:
    """Writes the packets of one trace; names are interned."""

    def __init__(self, file: IO[bytes]) -> None:
        try:
            from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as messages
        except ImportError:
            raise Failure("--perfetto needs a package: pip install 'turtles[perfetto]'") from None
        self._messages: Any = messages
        self._file = file
        self._trace = messages.Trace()
        self._names: dict[str, int] = {}
        self._tracks: set[int] = set()
        first = self._packet()
        first.sequence_flags = messages.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED
        for number, name in enumerate(_FACTS, 1):
            first.interned_data.debug_annotation_names.add(iid=number, name=name)

    def _packet(self) -> TracePacket:
        if len(self._trace.packet) >= _FLUSH_AT:
            self.flush()
        packet: TracePacket = self._trace.packet.add()
        packet.trusted_packet_sequence_id = 1
        return packet

    def flush(self) -> None:
        """Writes what has gathered: a trace is a sequence of packets, and may be written in pieces."""
        self._file.write(self._trace.SerializeToString())
        self._trace.Clear()

    def _track(self, cpu: int, number: int) -> int:
        process, uuid = (cpu + 1) << 8, (cpu + 1) << 8 | number + 1
        if process not in self._tracks:
            self._tracks.add(process)
            descriptor = self._packet().track_descriptor
            descriptor.uuid = process
            descriptor.process.pid = cpu + 1
            descriptor.process.process_name = f"core {cpu}"
        if uuid not in self._tracks:
            self._tracks.add(uuid)
            descriptor = self._packet().track_descriptor
            descriptor.uuid, descriptor.parent_uuid = uuid, process
            descriptor.name = "running" if number == _RUNNING else f"exits of L{number}"
            descriptor.sibling_order_rank = LEVELS - number
        return uuid

    def _event(self, at_ns: int, track: int, name: str | None) -> TracePacket:
        """A slice's begin, or its end where it has no name."""
        packet = self._packet()
        packet.timestamp = at_ns
        packet.sequence_flags = self._messages.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
        event = packet.track_event
        event.track_uuid = track
        if name is None:
            event.type = self._messages.TrackEvent.TYPE_SLICE_END
            return packet
        event.type = self._messages.TrackEvent.TYPE_SLICE_BEGIN
        number = self._names.get(name)
        if number is None:
            number = self._names[name] = len(self._names) + 1
            packet.interned_data.event_names.add(iid=number, name=name)
        event.name_iid = number
        return packet

    def exits(self, cpu: int, exit_: Exit) -> None:
        """An exit and those below it. One that never ended gets no slice."""
        track, handling, record = self._track(cpu, exit_.level), exit_.handling, exit_.record
        if handling is not None:
            facts = self._event(record.exit_ns, track, reason_text(record)).track_event.debug_annotations
            facts.add(name_iid=1, pointer_value=record.rip)
            facts.add(name_iid=2, pointer_value=record.qualification)
            facts.add(name_iid=3, string_value=handler_text(record, exit_.handled_by))
            facts.add(name_iid=4, uint_value=sum(handling.retired))
        for child in exit_.children:
            self.exits(cpu, child)
        if handling is not None:
            self._event(exit_.end_ns, track, None)

    def running(self, cpu: int, exit_: Exit, control_ns: int) -> None:
        """Who ran until an exit: L0 since it got control, then the guest. What is between is switching."""
        track, record = self._track(cpu, _RUNNING), exit_.record
        for name, begin, end in (
            ("L0", control_ns, record.before_ns),
            (f"L{exit_.level}", record.entry_ns, record.exit_ns),
        ):
            if begin < end:
                self._event(begin, track, name)
                self._event(end, track, None)


def export(runs: Iterable[Iterable[ExitRecord]], file: IO[bytes]) -> None:
    """Writes the records of each virtual CPU to a file."""
    exporter = Exporter(file)
    for cpu, records in enumerate(runs):
        control_ns = None
        for root in Forest().grow(records):
            exporter.exits(cpu, root)
            for exit_ in root.walk():
                if control_ns is None:
                    control_ns = exit_.record.before_ns
                exporter.running(cpu, exit_, control_ns)
                # Asleep is nobody's time.
                control_ns = exit_.record.after_ns + exit_.record.idle_ns
    exporter.flush()
