"""Local APIC: SDM volume 3, chapter 11."""

from __future__ import annotations

import pytest

from tests.devices.fakes import FakeTime
from turtles.devices import lapic
from turtles.devices.apic_bus import ApicBus
from turtles.devices.interfaces import EXTINT, NMI, InterruptMessage, message_of_msi
from turtles.devices.lapic import TICK_NS, LocalApic, MsrFault


class Rig:
    def __init__(self) -> None:
        self.time = FakeTime()
        self.eois: list[int] = []
        self.extint = -1
        self.bus = ApicBus()
        self.apic = self._apic(0)
        self.bus.attach(self.apic)
        self.put(lapic.SVR, 0x1FF)

    def _apic(self, identity: int) -> LocalApic:
        apic: LocalApic = LocalApic(
            identity,
            self.time,
            self.time,
            ipi=lambda shorthand, message: self.bus.ipi(apic, shorthand, message),
            eoi=self.eois.append,
            extint=lambda: self.extint,
            extint_acknowledge=self._acknowledge,
        )
        return apic

    def second(self) -> LocalApic:
        other = self._apic(1)
        other.write(lapic.SVR << 4, 4, 0x1FF)
        self.bus.attach(other)
        return other

    def _acknowledge(self) -> int:
        vector, self.extint = self.extint, -1
        return vector

    def put(self, register: int, value: int) -> None:
        self.apic.write(register << 4, 4, value)

    def get(self, register: int) -> int:
        return self.apic.read(register << 4, 4)

    def fixed(self, vector: int, level: bool = False) -> None:
        self.bus.send(InterruptMessage(vector, 0, 0, level=level))

    def take(self) -> int:
        vector = self.apic.pending()
        if vector >= 0:
            self.apic.acknowledge(vector)
        return vector

    def x2apic(self) -> None:
        self.apic.write_msr(0x1B, self.apic.read_msr(0x1B) | 1 << 10)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# --- priorities (11.8) ---


def test_highest_vector_first_and_nesting_by_class(rig: Rig) -> None:
    for vector in (0x31, 0x52, 0x51):
        rig.fixed(vector)
    assert rig.take() == 0x52
    assert rig.take() == -1  # 51h is of the same class
    rig.fixed(0x61)
    assert rig.take() == 0x61
    for expected in (-1, 0x51, 0x31):
        rig.put(lapic.EOI, 0)
        assert rig.take() == expected


def test_task_priority_holds_back(rig: Rig) -> None:
    rig.fixed(0x45)
    rig.put(lapic.TPR, 0x40)
    assert rig.take() == -1
    assert rig.get(lapic.PPR) == 0x40
    rig.apic.cr8 = 3
    assert rig.get(lapic.TPR) == 0x30
    assert rig.take() == 0x45
    assert rig.get(lapic.PPR) == 0x40
    assert rig.apic.cr8 == 3


def test_irr_isr_tmr_registers(rig: Rig) -> None:
    rig.fixed(0x45, level=True)
    rig.fixed(0x23)
    assert rig.get(lapic.IRR + 2) == 1 << 5
    assert rig.get(lapic.IRR + 1) == 1 << 3
    assert rig.get(lapic.TMR + 2) == 1 << 5
    rig.take()
    assert rig.get(lapic.ISR + 2) == 1 << 5
    assert rig.get(lapic.IRR + 2) == 0


def test_only_level_interrupts_broadcast_their_eoi(rig: Rig) -> None:
    rig.fixed(0x45, level=True)
    rig.take()
    rig.put(lapic.EOI, 0)
    rig.fixed(0x45)
    rig.take()
    rig.put(lapic.EOI, 0)
    rig.put(lapic.EOI, 0)  # nothing in service
    assert rig.eois == [0x45]


def test_software_disabled_takes_nothing_and_masks_the_lvt(rig: Rig) -> None:
    rig.put(lapic.LVT_ERROR, 0xFE)
    rig.put(lapic.SVR, 0xFF)
    assert rig.get(lapic.LVT_ERROR) == 0x1_00FE
    rig.put(lapic.LVT_ERROR, 0xFE)
    assert rig.get(lapic.LVT_ERROR) == 0x1_00FE
    rig.fixed(0x45)
    rig.put(lapic.SVR, 0x1FF)
    assert rig.take() == -1


# --- the 8259 (11.1, 11.5.1) ---


def test_extint_through_lint0(rig: Rig) -> None:
    rig.extint = 0x20
    assert rig.apic.pending() == -1  # LINT0 is masked at reset
    rig.put(lapic.LVT_LINT0, EXTINT << 8)
    assert rig.take() == 0x20
    assert rig.extint == -1
    assert rig.get(lapic.ISR + 1) == 0  # no EOI is due


def test_extint_directly_when_the_apic_is_off(rig: Rig) -> None:
    rig.apic.write_msr(0x1B, 0xFEE0_0100)
    rig.extint = 0x33
    assert rig.take() == 0x33


def test_extint_as_a_message_from_the_io_apic(rig: Rig) -> None:
    rig.extint = 0x33
    rig.bus.send(InterruptMessage(0, EXTINT, 0))
    assert rig.take() == 0x33
    rig.extint = 0x34
    assert rig.take() == -1


def test_nmi_through_lint1_and_by_message(rig: Rig) -> None:
    rig.apic.set_lint(1, True)
    assert not rig.apic.nmi_pending
    rig.put(lapic.LVT_LINT1, NMI << 8)
    rig.apic.set_lint(1, False)
    rig.apic.set_lint(1, True)
    assert rig.apic.nmi_pending
    rig.apic.take_nmi()
    rig.bus.send(InterruptMessage(2, NMI, 0))
    assert rig.apic.nmi_pending


# --- timer (11.5.4) ---


def test_one_shot(rig: Rig) -> None:
    rig.put(lapic.DIVIDE, 0xB)  # by 1
    rig.put(lapic.LVT_TIMER, 0xEC)
    rig.put(lapic.INITIAL_COUNT, 1000)
    rig.time.advance(400 * TICK_NS)
    assert rig.get(lapic.CURRENT_COUNT) == 600
    assert rig.take() == -1
    rig.time.advance(600 * TICK_NS)
    assert rig.take() == 0xEC
    assert rig.get(lapic.CURRENT_COUNT) == 0
    rig.put(lapic.EOI, 0)
    rig.time.advance(10_000 * TICK_NS)
    assert rig.take() == -1


@pytest.mark.parametrize(
    ("code", "divisor"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)]
)
def test_divide_configuration(rig: Rig, code: int, divisor: int) -> None:
    rig.put(lapic.DIVIDE, code)
    rig.put(lapic.INITIAL_COUNT, 1000)
    rig.time.advance(100 * divisor * TICK_NS)
    assert rig.get(lapic.CURRENT_COUNT) == 900


def test_periodic(rig: Rig) -> None:
    rig.put(lapic.DIVIDE, 0xB)
    rig.put(lapic.LVT_TIMER, 0x200EC)
    rig.put(lapic.INITIAL_COUNT, 25_000)  # 1 ms
    for _ in range(5):
        rig.time.advance(1_000_000)
        assert rig.take() == 0xEC
        rig.put(lapic.EOI, 0)
    rig.time.advance(999_999)
    assert rig.take() == -1
    rig.put(lapic.INITIAL_COUNT, 0)
    rig.time.advance(10_000_000)
    assert rig.take() == -1


def test_periodic_with_the_shortest_period_leaves_the_machine_alive(rig: Rig) -> None:
    rig.put(lapic.DIVIDE, 0xB)
    rig.put(lapic.LVT_TIMER, 0x200EC)
    rig.put(lapic.INITIAL_COUNT, 1)
    rig.time.advance(1_000_000)
    assert len(rig.time.deadlines()) == 1
    assert rig.time.deadlines()[0] >= rig.time.now + 1


def test_periodic_after_a_long_pause_fires_once(rig: Rig) -> None:
    rig.put(lapic.DIVIDE, 0xB)
    rig.put(lapic.LVT_TIMER, 0x200EC)
    rig.put(lapic.INITIAL_COUNT, 25_000)
    rig.time.jump(1_000_500_000)
    assert rig.take() == 0xEC
    assert rig.time.deadlines() == [1_001_000_000]


def test_masked_timer_is_silent(rig: Rig) -> None:
    rig.put(lapic.LVT_TIMER, 0x100EC)
    rig.put(lapic.INITIAL_COUNT, 10)
    rig.time.advance(1_000_000)
    assert rig.take() == -1


def test_tsc_deadline(rig: Rig) -> None:
    rig.apic.write_msr(0x6E0, 5000)
    assert rig.apic.read_msr(0x6E0) == 0  # not in that mode: ignored
    rig.put(lapic.LVT_TIMER, 0x400EC)
    rig.apic.write_msr(0x6E0, 5000)
    assert rig.apic.read_msr(0x6E0) == 5000
    rig.time.advance(4999)
    assert rig.take() == -1
    rig.time.advance(1)
    assert rig.take() == 0xEC
    assert rig.apic.read_msr(0x6E0) == 0
    rig.put(lapic.EOI, 0)
    rig.apic.write_msr(0x6E0, 17)  # past: at once
    assert rig.take() == 0xEC


def test_tsc_deadline_is_disarmed(rig: Rig) -> None:
    rig.put(lapic.LVT_TIMER, 0x400EC)
    rig.apic.write_msr(0x6E0, 5000)
    rig.apic.write_msr(0x6E0, 0)
    rig.apic.write_msr(0x6E0, 6000)
    rig.put(lapic.LVT_TIMER, 0xEC)  # a change of mode disarms
    rig.time.advance(10_000)
    assert rig.take() == -1


def test_tsc_deadline_follows_the_guests_counter(rig: Rig) -> None:
    offset = 1_000_000
    rig.apic.tsc = lambda: rig.time.now + offset
    rig.put(lapic.LVT_TIMER, 0x400EC)
    rig.apic.write_msr(0x6E0, 1_000_500)
    assert rig.time.deadlines() == [500]
    offset = 0
    rig.apic.tsc_changed()
    assert rig.time.deadlines() == [1_000_500]


# --- sending (11.6) ---


def test_self_ipi_by_shorthand_and_destination(rig: Rig) -> None:
    rig.put(lapic.ICR_LOW, 0x4_4000 | 0x61)
    assert rig.take() == 0x61
    rig.put(lapic.EOI, 0)
    rig.put(lapic.ICR_HIGH, 0)
    rig.put(lapic.ICR_LOW, 0x4062)
    assert rig.take() == 0x62


def test_ipis_to_another_processor(rig: Rig) -> None:
    other = rig.second()
    rig.put(lapic.ICR_HIGH, 1 << 24)
    rig.put(lapic.ICR_LOW, 0x4061)
    assert (rig.apic.pending(), other.pending()) == (-1, 0x61)
    rig.put(lapic.ICR_LOW, 0xC_4072)  # all but self
    assert (rig.apic.pending(), other.pending()) == (-1, 0x72)
    rig.put(lapic.ICR_LOW, 0x8_4083)  # all
    assert (rig.apic.pending(), other.pending()) == (0x83, 0x83)


def test_logical_destinations(rig: Rig) -> None:
    rig.put(lapic.LDR, 0x0400_0000)
    assert rig.apic.matches(InterruptMessage(0x40, 0, 0x06, logical=True))
    assert not rig.apic.matches(InterruptMessage(0x40, 0, 0x03, logical=True))
    rig.put(lapic.DFR, 0x0FFF_FFFF)  # cluster model
    rig.put(lapic.LDR, 0x2100_0000)
    assert rig.apic.matches(InterruptMessage(0x40, 0, 0x23, logical=True))
    assert not rig.apic.matches(InterruptMessage(0x40, 0, 0x13, logical=True))


def test_lowest_priority_goes_to_one(rig: Rig) -> None:
    other = rig.second()
    rig.put(lapic.TPR, 0x20)
    rig.bus.send(InterruptMessage(0x45, 1, 0xFF))
    assert (rig.apic.pending(), other.pending()) == (-1, 0x45)


def test_illegal_vectors_are_reported_through_esr(rig: Rig) -> None:
    rig.put(lapic.LVT_ERROR, 0xFE)
    rig.put(lapic.ICR_LOW, 0x4_4005)
    assert rig.take() == 0xFE
    assert rig.get(lapic.ESR) == 0  # shows after a write only
    rig.put(lapic.ESR, 0)
    assert rig.get(lapic.ESR) == 1 << 5
    rig.fixed(3)
    rig.put(lapic.ESR, 0)
    assert rig.get(lapic.ESR) == 1 << 6
    rig.get(0x3B)
    rig.put(lapic.ESR, 0)
    assert rig.get(lapic.ESR) == 1 << 7


def test_msi_addresses() -> None:
    assert message_of_msi(0xFEE0_100C, 0x4045) == InterruptMessage(0x45, 0, 1, logical=True)
    assert message_of_msi(0x1234_5678, 0x45) is None
    assert message_of_msi(1 << 32 | 0xFEE0_0000, 0x45) is None


# --- modes and MSRs (11.4.3, 11.12) ---


def test_x2apic_registers(rig: Rig) -> None:
    rig.x2apic()
    assert rig.apic.read_msr(0x802) == 0
    assert rig.apic.read_msr(0x80D) == 1
    assert rig.apic.read_msr(0x803) == lapic.VERSION_VALUE
    rig.apic.write_msr(0x83F, 0x77)  # self IPI
    assert rig.take() == 0x77
    rig.apic.write_msr(0x80B, 0)
    rig.apic.write_msr(0x830, 0x4061)  # destination 0 in the high half
    assert rig.take() == 0x61
    assert rig.apic.read_msr(0x830) == 0x4061
    assert rig.apic.read(0x20, 4) == 0xFFFF_FFFF  # nothing in memory any more


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (0x80B, 1),
        (0x802, 0),
        (0x80A, 0),
        (0x80D, 0),
        (0x828, 1),
        (0x80E, 0),
        (0x831, 0),
        (0x808, 0x100),
        (0x8FF, 0),
    ],
)
def test_x2apic_writes_that_fault(rig: Rig, msr: int, value: int) -> None:
    rig.x2apic()
    with pytest.raises(MsrFault):
        rig.apic.write_msr(msr, value)


@pytest.mark.parametrize("msr", [0x80B, 0x80E, 0x831, 0x83F, 0x800, 0x8FF])
def test_x2apic_reads_that_fault(rig: Rig, msr: int) -> None:
    rig.x2apic()
    with pytest.raises(MsrFault):
        rig.apic.read_msr(msr)


def test_read_only_bits_of_the_lvt_do_not_fault(rig: Rig) -> None:
    rig.x2apic()
    rig.apic.write_msr(0x835, 0x5700)  # what Linux writes when it powers off
    assert rig.apic.read_msr(0x835) == 0x700
    rig.apic.write_msr(0x830, 0x4_5061)
    assert rig.apic.read_msr(0x830) == 0x4_4061


def test_x2apic_msrs_fault_in_xapic_mode(rig: Rig) -> None:
    with pytest.raises(ValueError):
        rig.apic.read_msr(0x802)
    with pytest.raises(ValueError):
        rig.apic.write_msr(0x80B, 0)


def test_mode_transitions(rig: Rig) -> None:
    base = 0xFEE0_0100
    with pytest.raises(MsrFault):
        rig.apic.write_msr(0x1B, base | 1 << 10)  # EXTD without EN
    with pytest.raises(MsrFault):
        rig.apic.write_msr(0x1B, base | 1 << 11 | 1)  # reserved bit
    with pytest.raises(MsrFault):
        rig.apic.write_msr(0x1B, 1 << 45 | base)
    rig.x2apic()
    with pytest.raises(MsrFault):
        rig.apic.write_msr(0x1B, base | 1 << 11)  # x2APIC to xAPIC
    rig.apic.write_msr(0x1B, base)
    assert not rig.apic.enabled
    with pytest.raises(MsrFault):
        rig.apic.write_msr(0x1B, base | 3 << 10)  # disabled to x2APIC
    rig.apic.write_msr(0x1B, base | 1 << 11)
    assert rig.get(lapic.SVR) == 0xFF


def test_sub_word_and_unaligned_accesses(rig: Rig) -> None:
    assert rig.apic.read((lapic.VERSION << 4) + 2, 1) == 5
    assert rig.apic.read((lapic.VERSION << 4) + 4, 4) == 0
    rig.apic.write((lapic.TPR << 4) + 1, 1, 0xFF)
    assert rig.get(lapic.TPR) == 0
