"""Local APIC (SDM volume 3, chapter 11): xAPIC registers in memory and x2APIC registers as MSRs.

Accepts interrupts, orders them by priority, owns the local vector table and the timer. It does not know the
processor: who runs the virtual CPU asks `pending`, injects, and says `acknowledge`. No thermal or
performance-counter events happen, and directed EOI does not exist.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from turtles.devices.interfaces import (
    EXTINT,
    FIXED,
    INIT,
    LOWEST_PRIORITY,
    MINIMUM_PERIOD_NS,
    NMI,
    STARTUP,
    Clock,
    InterruptMessage,
    Timers,
)

# Registers by xAPIC offset / 16, which is also the x2APIC MSR number less 800H (table 11-6).
# Those that a tick touches are `Final`: compiled, they are numbers in the code and no look into a dictionary.
ID, VERSION = 0x02, 0x03
TPR, APR, PPR, RRD, LDR, DFR, SVR = 0x08, 0x09, 0x0A, 0x0C, 0x0D, 0x0E, 0x0F
EOI: Final = 0x0B
ISR, TMR, IRR = 0x10, 0x18, 0x20
ESR = 0x28
LVT_CMCI, ICR_LOW, ICR_HIGH = 0x2F, 0x30, 0x31
LVT_TIMER: Final = 0x32
LVT_THERMAL, LVT_PERFORMANCE, LVT_LINT1, LVT_ERROR = 0x33, 0x34, 0x36, 0x37
LVT_LINT0: Final = 0x35
INITIAL_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x38, 0x39, 0x3E, 0x3F

MSR_APIC_BASE: Final = 0x1B
MSR_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC_FIRST: Final = 0x800
MSR_X2APIC_LAST: Final = 0x8FF

BASE_BSP = 1 << 8
BASE_EXTD: Final = 1 << 10
BASE_ENABLE: Final = 1 << 11
SVR_ENABLE: Final = 1 << 8
LVT_MASKED: Final = 1 << 16
LVT_READ_ONLY = 1 << 14 | 1 << 12
TIMER_PERIODIC: Final = 1
TIMER_TSC_DEADLINE: Final = 2

ESR_SEND_ILLEGAL_VECTOR, ESR_RECEIVED_ILLEGAL_VECTOR, ESR_ILLEGAL_REGISTER = 1 << 5, 1 << 6, 1 << 7

SHORTHAND_NONE, SHORTHAND_SELF, SHORTHAND_ALL, SHORTHAND_OTHERS = range(4)

TICK_NS = 40
"""The timer counts the 25 MHz crystal that CPUID 15H reports."""

_LVT_BITS = {
    LVT_TIMER: 0x7_00FF,
    LVT_THERMAL: 0x1_07FF,
    LVT_PERFORMANCE: 0x1_07FF,
    LVT_LINT0: 0x1_A7FF,
    LVT_LINT1: 0x1_A7FF,
    LVT_ERROR: 0x1_00FF,
}
_ICR_BITS = 0xC_CFFF
_X2APIC_WRITABLE = {
    TPR: 0xFF,
    EOI: 0,
    SVR: 0x1FF,
    ESR: 0,
    ICR_LOW: 0xFFFF_FFFF_000C_DFFF,
    INITIAL_COUNT: 0xFFFF_FFFF,
    DIVIDE: 0xB,
    SELF_IPI: 0xFF,
    # Delivery status and Remote IRR are read-only, not reserved: writing them has no effect and no fault.
    **{register: bits | LVT_READ_ONLY for register, bits in _LVT_BITS.items()},
}
_X2APIC_READABLE = (
    frozenset((ID, VERSION, TPR, PPR, LDR, SVR, ESR, ICR_LOW, INITIAL_COUNT, CURRENT_COUNT, DIVIDE))
    | frozenset(_LVT_BITS)
    | frozenset(range(ISR, ESR))
)

VERSION_VALUE = (len(_LVT_BITS) - 1) << 16 | 0x14


class MsrFault(ValueError):
    """The RDMSR or WRMSR is refused: the processor raises #GP(0)."""


def _no_vector() -> int:
    return -1


class LocalApic:
    """The local APIC of one logical processor.

    `ipi` carries out what an ICR write sends to others; `eoi` hears of every EOI of a level-triggered vector;
    `extint` peeks at the 8259's vector (-1 none) and `extint_acknowledge` runs its INTA cycle; `tsc` is the
    guest's time-stamp counter; `on_move` hears that IA32_APIC_BASE has moved the registers; `wake` is called
    when something was accepted or a pin of the 8259 rose.
    """

    def __init__(
        self,
        identity: int,
        clock: Clock,
        timers: Timers,
        *,
        address_bits: int = 40,
        bootstrap: bool = True,
        tsc: Callable[[], int] | None = None,
        ipi: Callable[[int, InterruptMessage], None] | None = None,
        eoi: Callable[[int], None] | None = None,
        extint: Callable[[], int] = _no_vector,
        extint_acknowledge: Callable[[], int] = _no_vector,
        on_init: Callable[[], None] | None = None,
        on_startup: Callable[[int], None] | None = None,
        on_move: Callable[[], None] | None = None,
        wake: Callable[[], None] | None = None,
    ) -> None:
        self.identity = identity
        self._clock = clock
        self._timers = timers
        self._address_mask = (1 << address_bits) - 1
        self.tsc = tsc or clock
        self._ipi = ipi
        self._eoi = eoi
        self._extint = extint
        self._extint_acknowledge = extint_acknowledge
        self._on_init = on_init
        self._on_startup = on_startup
        self._on_move = on_move
        self.wake = wake
        self._base = 0xFEE0_0000 | BASE_ENABLE | (BASE_BSP if bootstrap else 0)
        self.nmi_pending = False
        self._timer: object | None = None
        self._reset()

    def _reset(self) -> None:
        """State after power-up, INIT, and when IA32_APIC_BASE disables the APIC (11.4.7)."""
        self._cancel_timer()
        self._id = self.identity
        self._tpr = 0
        self._ldr = 0
        self._dfr = 0xFFFF_FFFF
        self._svr = 0xFF
        self._irr = 0  # the three 256-bit registers are integers: the highest vector is bit_length - 1
        self._isr = 0
        self._tmr = 0
        self._esr = 0
        self._esr_pending = 0
        self._icr = 0
        self._lvt = dict.fromkeys(_LVT_BITS, LVT_MASKED)
        self._lint = [False, False]
        self._extint_requested = False
        self._initial_count = 0
        self._divide = 0
        self._count_start_ns = 0
        self._tsc_deadline = 0

    def init(self) -> None:
        """INIT: like power-up, except that the APIC ID and IA32_APIC_BASE stay."""
        identity = self._id
        self._reset()
        self._id = identity

    # --- modes ---

    @property
    def enabled(self) -> bool:
        """IA32_APIC_BASE global enable."""
        return bool(self._base & BASE_ENABLE)

    @property
    def x2apic(self) -> bool:
        """x2APIC mode: registers are MSRs, nothing in memory."""
        return bool(self._base & BASE_EXTD)

    @property
    def base(self) -> int:
        """Physical address of the xAPIC registers."""
        return self._base & ~0xFFF

    def _software_enabled(self) -> bool:
        return self._base & BASE_ENABLE != 0 and self._svr & SVR_ENABLE != 0

    # --- the processor's side ---

    def pending(self) -> int:
        """Vector that the processor would take now, 8259 through LINT0 included; -1 none."""
        if self._takes_extint():
            vector = self._extint()
            if vector >= 0:
                return vector
        irr = self._irr
        if irr and self._software_enabled():
            vector = irr.bit_length() - 1
            if vector & 0xF0 > self.processor_priority() & 0xF0:
                return vector
        return -1

    def acknowledge(self, vector: int) -> None:
        """The processor takes `vector`, which `pending` just gave."""
        if self._takes_extint() and self._extint() == vector:
            self._extint_requested = False
            self._extint_acknowledge()
            return
        bit = 1 << vector
        if self._irr & bit:
            self._irr &= ~bit
            self._isr |= bit

    def _takes_extint(self) -> bool:
        """The 8259 reaches the processor: through LINT0, an I/O APIC, or because the APIC is off (11.1)."""
        if not self._base & BASE_ENABLE or self._extint_requested:
            return True
        return self._lvt[LVT_LINT0] & (LVT_MASKED | 0x700) == EXTINT << 8

    def take_nmi(self) -> None:
        """The processor takes the pending NMI."""
        self.nmi_pending = False

    @property
    def cr8(self) -> int:
        """CR8: bits 7:4 of the task priority."""
        return self._tpr >> 4

    @cr8.setter
    def cr8(self, value: int) -> None:
        self._tpr = (value & 0xF) << 4

    def processor_priority(self) -> int:
        """PPR (11.8.3.1)."""
        in_service = (self._isr.bit_length() - 1) & 0xF0 if self._isr else 0
        return self._tpr if self._tpr & 0xF0 >= in_service else in_service

    # --- the bus's side ---

    def matches(self, message: InterruptMessage) -> bool:
        """Whether the message's destination names this APIC (11.6.2)."""
        destination = message.destination
        if destination == 0xFFFF_FFFF or destination == 0xFF:
            return True
        if not message.logical:
            return destination == (self.identity if self.x2apic else self._id)
        if self.x2apic:
            logical = self._x2apic_ldr()
            return destination >> 16 == logical >> 16 and destination & logical & 0xFFFF != 0
        logical = self._ldr >> 24
        if self._dfr >> 28 == 0xF:
            return destination & logical != 0
        return destination >> 4 == logical >> 4 and destination & logical & 0xF != 0

    def accept(self, message: InterruptMessage) -> None:
        """A message for this APIC arrives."""
        if not self._base & BASE_ENABLE:
            return
        delivery = message.delivery
        if delivery in (FIXED, LOWEST_PRIORITY):
            self._accept_fixed(message.vector, message.level)
        elif delivery == NMI:
            self.nmi_pending = True
        elif delivery == EXTINT:
            self._extint_requested = True
        elif delivery == INIT:
            if self._on_init is not None:
                self._on_init()
        elif delivery == STARTUP and self._on_startup is not None:
            self._on_startup(message.vector)
        if self.wake is not None:
            self.wake()

    def _accept_fixed(self, vector: int, level: bool) -> None:
        if not self._svr & SVR_ENABLE:
            return
        if vector < 16:
            self._error(ESR_RECEIVED_ILLEGAL_VECTOR)
            return
        bit = 1 << vector
        self._irr |= bit
        if level:
            self._tmr |= bit
        else:
            self._tmr &= ~bit

    def set_lint(self, number: int, level: bool) -> None:
        """Local interrupt pin 0 (the 8259's INT) or 1 (NMI) changes."""
        rising = level and not self._lint[number]
        self._lint[number] = level
        if rising and self._base & BASE_ENABLE:
            self._local(LVT_LINT0 + number)
        if level and self.wake is not None:
            self.wake()

    def _local(self, register: int) -> None:
        """A local vector table source fires."""
        entry = self._lvt[register]
        if entry & LVT_MASKED:
            return
        delivery = entry >> 8 & 7 if register != LVT_TIMER and register != LVT_ERROR else FIXED
        if delivery == FIXED:  # at each tick of a guest: without a message
            if self._base & BASE_ENABLE:
                self._accept_fixed(entry & 0xFF, level=False)
                if self.wake is not None:
                    self.wake()
        elif delivery != EXTINT:  # ExtINT is not latched: `pending` asks the 8259
            self.accept(InterruptMessage(entry & 0xFF, delivery, self._id))

    def _error(self, bit: int) -> None:
        already = self._esr_pending & bit
        self._esr_pending |= bit
        if not already and self._lvt[LVT_ERROR] & 0xFF >= 16:
            self._local(LVT_ERROR)

    # --- registers in memory ---

    def read(self, offset: int, width: int) -> int:
        """xAPIC register read: 32 bits on a 16-byte boundary."""
        if self._base & (BASE_ENABLE | BASE_EXTD) != BASE_ENABLE:
            return (1 << 8 * width) - 1
        if offset & 0xC:
            return 0
        return self._load(offset >> 4 & 0xFF) >> 8 * (offset & 3) & (1 << 8 * width) - 1

    def write(self, offset: int, width: int, value: int) -> None:
        """xAPIC register write: 32 bits on a 16-byte boundary; others are ignored."""
        if self._base & (BASE_ENABLE | BASE_EXTD) != BASE_ENABLE or offset & 0xF:
            return
        self._store(offset >> 4 & 0xFF, value & 0xFFFF_FFFF)

    def _load(self, register: int) -> int:
        if register in self._lvt:
            return self._lvt[register]
        if ISR <= register < ESR:
            bits = (self._isr, self._tmr, self._irr)[(register - ISR) >> 3]
            return bits >> 32 * (register & 7) & 0xFFFF_FFFF
        match register:
            case 0x02:  # ID
                return self.identity if self.x2apic else self._id << 24 & 0xFF00_0000
            case 0x03:
                return VERSION_VALUE
            case 0x08:
                return self._tpr
            case 0x09:  # APR: arbitration is a matter of old buses; as good as any answer
                return self.processor_priority()
            case 0x0A:
                return self.processor_priority()
            case 0x0D:
                return self._x2apic_ldr() if self.x2apic else self._ldr
            case 0x0E:
                return self._dfr
            case 0x0F:
                return self._svr
            case 0x28:
                return self._esr
            case 0x30:
                return self._icr & 0xFFFF_FFFF
            case 0x31:
                return self._icr >> 32
            case 0x38:
                return self._initial_count
            case 0x39:
                return self._current_count()
            case 0x3E:
                return self._divide
            case 0x0B | 0x0C | 0x2F:  # EOI, RRD, CMCI: nothing to see
                return 0
        self._error(ESR_ILLEGAL_REGISTER)
        return 0

    def _store(self, register: int, value: int) -> None:
        if register in self._lvt:
            self._store_lvt(register, value)
            return
        match register:
            case 0x02:
                self._id = value >> 24
            case 0x08:
                self._tpr = value & 0xFF
            case 0x0B:
                self.end_of_interrupt()
            case 0x0D:
                self._ldr = value & 0xFF00_0000
            case 0x0E:
                self._dfr = value | 0x0FFF_FFFF
            case 0x0F:
                self._svr = value & 0x1FF
                if not value & SVR_ENABLE:
                    for entry in self._lvt:
                        self._lvt[entry] |= LVT_MASKED
            case 0x28:
                self._esr, self._esr_pending = self._esr_pending, 0
            case 0x30:
                self._icr = self._icr & ~0xFFFF_FFFF | value & _ICR_BITS
                self._send_icr(self._icr >> 56)
            case 0x31:
                self._icr = self._icr & 0xFFFF_FFFF | value << 32
            case 0x38:
                self._store_initial_count(value)
            case 0x3E:
                self._divide = value & 0xB
                self._store_initial_count_again()
            case 0x03 | 0x09 | 0x0A | 0x0C | 0x2F | 0x39:
                pass  # read-only
            case _:
                if not ISR <= register < ESR:
                    self._error(ESR_ILLEGAL_REGISTER)

    def _store_lvt(self, register: int, value: int) -> None:
        before = self._lvt[register]
        entry = value & _LVT_BITS[register]
        if not self._svr & SVR_ENABLE:
            entry |= LVT_MASKED
        self._lvt[register] = entry
        if register == LVT_TIMER:
            if (before >> 17 & 3 == TIMER_TSC_DEADLINE) != (entry >> 17 & 3 == TIMER_TSC_DEADLINE):
                self._cancel_timer()  # a change to or from TSC deadline disarms (11.5.4.1)
                self._initial_count = 0
                self._tsc_deadline = 0
        elif register == LVT_LINT0 and self._lint[0] and before & LVT_MASKED:
            self._local(register)

    def end_of_interrupt(self) -> None:
        """EOI: the highest vector in service is over."""
        if not self._isr:
            return
        vector = self._isr.bit_length() - 1
        self._isr &= ~(1 << vector)
        if self._tmr >> vector & 1 and self._eoi is not None:
            self._eoi(vector)

    # --- sending ---

    def _send_icr(self, destination: int) -> None:
        delivery = self._icr >> 8 & 7
        shorthand = self._icr >> 18 & 3
        level_assert = bool(self._icr & 1 << 14)
        if delivery == INIT and self._icr & 1 << 15 and not level_assert:
            return  # INIT level de-assert: not supported since Pentium 4, does nothing
        vector = self._icr & 0xFF
        if delivery in (FIXED, LOWEST_PRIORITY) and vector < 16:
            self._error(ESR_SEND_ILLEGAL_VECTOR)
            return
        message = InterruptMessage(vector, delivery, destination, bool(self._icr & 1 << 11))
        if shorthand == SHORTHAND_SELF:
            self.accept(message)
        elif self._ipi is not None:
            self._ipi(shorthand, message)

    # --- the timer ---

    def _divisor(self) -> int:
        code = (self._divide & 3 | self._divide >> 1 & 4) + 1 & 7
        return 1 << code

    def _mode(self) -> int:
        return self._lvt[LVT_TIMER] >> 17 & 3

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timers.cancel(self._timer)
            self._timer = None

    def _store_initial_count(self, value: int) -> None:
        if self._mode() == TIMER_TSC_DEADLINE:
            return
        self._cancel_timer()
        self._initial_count = value
        self._count_start_ns = self._clock()
        if value:
            self._timer = self._timers.at(self._count_start_ns + self._period_ns(), self._expired)

    def _store_initial_count_again(self) -> None:
        """A new divisor: what is left of the count goes on at the new pace."""
        if self._timer is not None and self._mode() != TIMER_TSC_DEADLINE:
            self._store_initial_count(self._initial_count)

    def _period_ns(self) -> int:
        return self._initial_count * self._divisor() * TICK_NS

    def _current_count(self) -> int:
        if self._mode() == TIMER_TSC_DEADLINE or not self._initial_count:
            return 0
        elapsed = (self._clock() - self._count_start_ns) // (self._divisor() * TICK_NS)
        if self._mode() == TIMER_PERIODIC:
            return self._initial_count - elapsed % self._initial_count
        return max(self._initial_count - elapsed, 0)

    def _expired(self) -> None:
        self._timer = None
        mode = self._mode()
        if mode == TIMER_PERIODIC and self._initial_count:
            period = max(self._period_ns(), MINIMUM_PERIOD_NS)
            missed = (self._clock() - self._count_start_ns) // period
            self._count_start_ns += max(missed, 1) * period
            self._timer = self._timers.at(self._count_start_ns + period, self._expired)
        elif mode == TIMER_TSC_DEADLINE:
            self._tsc_deadline = 0
        self._local(LVT_TIMER)

    def tsc_changed(self) -> None:
        """The guest moved its time-stamp counter: an armed deadline is now at another time."""
        if self._tsc_deadline:
            self._arm_deadline()

    def _arm_deadline(self) -> None:
        self._cancel_timer()
        left = self._tsc_deadline - self.tsc()
        if left <= 0:
            self._expired()
        else:
            self._timer = self._timers.at(self._clock() + left, self._expired)

    # --- MSRs ---

    def read_msr(self, msr: int) -> int:
        """IA32_APIC_BASE, IA32_TSC_DEADLINE, and the x2APIC registers in x2APIC mode."""
        if msr == MSR_APIC_BASE:
            return self._base
        if msr == MSR_TSC_DEADLINE:
            return self._tsc_deadline
        register = msr - MSR_X2APIC_FIRST
        if not self.x2apic or register not in _X2APIC_READABLE:
            raise MsrFault(f"RDMSR {msr:#x}")
        if register == ICR_LOW:
            return self._icr
        return self._load(register)

    def write_msr(self, msr: int, value: int) -> None:
        """As `read_msr`; raises `MsrFault` where the SDM says #GP(0)."""
        if msr == MSR_APIC_BASE:
            self._write_base(value)
            return
        if msr == MSR_TSC_DEADLINE:
            if self._mode() == TIMER_TSC_DEADLINE and self._base & BASE_ENABLE:
                self._tsc_deadline = value
                self._cancel_timer()
                if value:
                    self._arm_deadline()
            return
        register = msr - MSR_X2APIC_FIRST
        if register == EOI and value == 0 and self.x2apic:  # by far the most frequent
            self.end_of_interrupt()
            return
        writable = _X2APIC_WRITABLE.get(register)
        if not self.x2apic or writable is None or value & ~writable:
            raise MsrFault(f"WRMSR {msr:#x}, {value:#x}")
        if register == ICR_LOW:
            self._icr = value & ~(1 << 12)
            self._send_icr(value >> 32)
        elif register == SELF_IPI:
            self._icr = value | SHORTHAND_SELF << 18
            self._send_icr(0)
        else:
            self._store(register, value)

    def _write_base(self, value: int) -> None:
        """IA32_APIC_BASE: the transitions of figure 11-27."""
        if value & ~self._address_mask or value & 0x2FF & ~BASE_BSP:
            raise MsrFault(f"WRMSR IA32_APIC_BASE, {value:#x}: reserved bits")
        enable, extended = bool(value & BASE_ENABLE), bool(value & BASE_EXTD)
        if extended and not enable:
            raise MsrFault("x2APIC mode with the APIC disabled")
        if self.x2apic and enable and not extended:
            raise MsrFault("x2APIC mode is left through the disabled state only")
        if extended and not self.enabled:
            raise MsrFault("x2APIC mode is entered from xAPIC mode only")
        if self.enabled and not enable:
            self._base = value
            self._reset()
        moved = (value ^ self._base) & ~0xFFF
        self._base = value
        if moved and self._on_move is not None:
            self._on_move()

    def _x2apic_ldr(self) -> int:
        return self.identity >> 4 << 16 | 1 << (self.identity & 15)
