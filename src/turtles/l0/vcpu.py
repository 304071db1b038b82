"""One virtual CPU of L1: the loop of entry, exit and dispatch, and the two contexts it runs in, L1 and L2.

Handlers are plain functions of a `Vcpu`, found in a list by basic exit reason, one list a level. It decides
nothing about an exit itself; it owns vmcs01, the cached vmcs12s, and where interrupts stand.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from turtles.l0 import baseline
from turtles.l0.exits.msr import tsc
from turtles.l0.interrupts import delivery
from turtles.l0.mmu import shadow_on_shadow
from turtles.l0.nested import entry, reflect
from turtles.l0.nested.instructions import set_current
from turtles.l0.nested.vpids import Vpids
from turtles.l0.outcome import Ending, GuestStop, Outcome
from turtles.l0.ports import EventQueue, LocalApic, StartState
from turtles.l0.stats import REASONS, REFLECTED, Stats, reason_name
from turtles.l0.vmcs import bits as X
from turtles.l0.vmcs import vmcs01
from turtles.l0.vmcs.shadow12 import Shadow12, Shadow12s
from turtles.l0.vmcs.vmcs12 import Vmcs12, Vmcs12Cache
from turtles.silicon import Core, ExitReason, SiliconError, Vmcs
from turtles.silicon import controls as C
from turtles.silicon import fields as F
from turtles.silicon import slots as S

if TYPE_CHECKING:
    from turtles.l0.machine import Machine

Handler = Callable[["Vcpu"], None]
FOREVER: Final = 1 << 62
_REASON: Final = REASONS - 1


class Vcpu:
    """A virtual CPU. Everything belongs to the thread in `run`, but `machine.stop` and the core's `kick`."""

    def __init__(self, machine: Machine, core: Core, apic: LocalApic, events: EventQueue) -> None:
        self.machine = machine
        self.core = core = baseline.choose_core(core, machine.tactics)
        self.regs = core.slots
        self.apic = apic
        self.events = events
        self.identity = apic.identity
        apic.tsc = lambda: tsc(self)
        apic.wake = self._wake
        self.stats = Stats()

        self.vmcs01 = Vmcs(machine.memory, machine.pool.allocate())
        self.v01 = self.vmcs01.slots
        vmcs01.initialise(
            self.v01, machine.model, machine.revision, machine.mmu.eptp01, machine.msr_bitmap01_host_pa
        )
        if not machine.tactics.vpid:
            self.v01[F.SECONDARY_CONTROLS] &= ~C.SECONDARY_VPID
        if machine.shadows:
            self.v01[F.VMREAD_BITMAP] = machine.vmread_bitmap_host_pa
            self.v01[F.VMWRITE_BITMAP] = machine.vmwrite_bitmap_host_pa

        # Where it runs: L1 through vmcs01, or L2 through the vmcs02 of `current12`.
        self.shadow = machine.shadow
        # L1's CR3, where vmcs01 has another (shadow-on-shadow), and EFER.LME of an L1 without paging.
        self.cr3 = 0
        self.lme = 0
        if self.shadow is not None:
            self.v01[F.CR0_MASK] |= shadow_on_shadow.CR0_OWNED
            self.v01[F.CR4_MASK] |= shadow_on_shadow.CR4_OWNED
        self.cr0_owned = self.v01[F.CR0_MASK]

        self.level = 1
        self.vmcs = self.vmcs01
        self.v = self.v01
        self.handlers: list[list[Handler]] = machine.handler_lists()

        # VMX operation of L1.
        self.in_vmx = False
        self.vmxon_l1_pa = X.NO_ADDRESS
        self.current12: Vmcs12 | None = None
        self.current_shadow: Shadow12 | None = None  # in place of `current12`, where L1 loaded a shadow VMCS
        self.vmcs12s = Vmcs12Cache(machine.memory, machine.pool, machine.l1, machine.revision)
        self.shadow12s = Shadow12s(machine.memory, machine.l1)
        self.vpids = Vpids(lambda vpid: core_flush(machine, vpid))
        self.regs[S.FEATURE_CONTROL] = 5 if machine.l1_has_vmx else 1  # locked; VMXON outside SMX
        self.broken_rule = ""
        self.failure = ""  # the traceback of a handler that failed, for a report

        # Interrupts: `attention` asks for a look at them (and at timers) before the next entry, `replan` for
        # one at timers only; `waiting` remembers that something is pending which the context would not
        # take, so that another one is asked.
        self.attention = True
        self.replan = False
        self.waiting = False
        self.halted = False
        self.entry_pending = False  # L1's VMLAUNCH or VMRESUME has not reached L2 yet
        self.entry_retired = self.exit_retired = 0  # instructions retired when L1 entered, and left, L2 last
        self.reflected = False

    # --- contexts ---

    @property
    def entered12(self) -> Vmcs12:
        """The vmcs12 that L2 runs with."""
        c = self.current12
        assert c is not None
        return c

    def switch_to_l2(self, c: Vmcs12) -> None:
        """The next entry is L2's."""
        self.level = 2
        self.vmcs = c.vmcs02
        self.v = c.v02
        self.entry_pending = True
        self.entry_retired = self.regs[S.RETIRED]
        if self.waiting:
            self.attention = True

    def switch_to_l1(self) -> None:
        """The next entry is L1's."""
        if self.level == 2:
            self._leave_l2()
        self.level = 1
        self.vmcs = self.vmcs01
        self.v = self.v01
        self.entry_pending = False
        self.halted = False
        if self.waiting:
            self.attention = True

    def _leave_l2(self) -> None:
        self.exit_retired = self.regs[S.RETIRED]
        self.stats.retired[2] += self.exit_retired - self.entry_retired

    def enter_vmx(self, vmxon_l1_pa: int) -> None:
        """L1 is in VMX operation, without a current VMCS."""
        if self.machine.shadows:
            self.v01[F.SECONDARY_CONTROLS] |= C.SECONDARY_VMCS_SHADOWING
        self.in_vmx = True
        self.vmxon_l1_pa = vmxon_l1_pa
        set_current(self, None)

    def leave_vmx(self) -> None:
        """L1 is out of VMX operation: nothing of its vmcs12s is left."""
        if self.machine.shadows:
            self.v01[F.SECONDARY_CONTROLS] &= ~C.SECONDARY_VMCS_SHADOWING
        self.in_vmx = False
        self.vmxon_l1_pa = X.NO_ADDRESS
        set_current(self, None)
        self.vmcs12s.discard()
        self.v01[F.CR0_MASK] = self.cr0_owned

    def start(self, state: StartState) -> None:
        """Puts L1 at its first instruction."""
        vmcs01.load_start_state(self.v01, self.regs, state)
        if self.shadow is not None:
            self.cr3 = self.v01[F.GUEST_CR3]
            self.lme = self.regs[S.EFER] & X.EFER_LME
            self.shadow.apply1(self)

    # --- what handlers need ---

    def cpl(self) -> int:
        """Current privilege level of the context."""
        return self.v[F.GUEST_SS_ACCESS] >> 5 & 3

    def long_mode(self) -> bool:
        """Whether the context is in 64-bit mode."""
        return bool(self.v[F.GUEST_CS_ACCESS] & X.ACCESS_LONG and self.regs[S.EFER] & X.EFER_LMA)

    def efer(self) -> int:
        """EFER as the context reads it: an unpaged L1 on a mirror has an LME that the processor has not."""
        efer = self.regs[S.EFER]
        return efer | self.lme if self.shadow is not None and self.level == 1 else efer

    def advance(self) -> None:
        """Moves past the instruction that exited, as if it had been executed."""
        v = self.v
        rip = v[F.GUEST_RIP] + v[F.EXIT_INSTRUCTION_LENGTH]
        if rip > 0xFFFF_FFFF:
            rip &= 0xFFFF_FFFF_FFFF_FFFF if self.long_mode() else 0xFFFF_FFFF
        v[F.GUEST_RIP] = rip
        blocking = v[F.GUEST_INTERRUPTIBILITY]
        if blocking & 3:
            v[F.GUEST_INTERRUPTIBILITY] = blocking & ~3
        if v[F.GUEST_RFLAGS] & X.RFLAGS_TF and not v[F.GUEST_DEBUGCTL] & X.DEBUGCTL_BTF:
            v[F.GUEST_PENDING_DEBUG] |= X.PENDING_SINGLE_STEP
        if self.level == 2 and v[F.PRIMARY_CONTROLS] & C.PRIMARY_MONITOR_TRAP:
            # That exit follows what L0 has done in L2's place too (SDM 26.5.2).
            v[F.ENTRY_INTERRUPTION_INFO] = X.VALID | X.TYPE_OTHER

    def inject_exception(self, vector: int, error: int | None = None) -> None:
        """The context takes a hardware exception at its next entry; in L2, L1 may intercept it."""
        v = self.v
        if self.level == 2 and self.entered12.v[F.EXCEPTION_BITMAP] >> vector & 1:
            reflect.reflect_exception(self, vector, error)
            return
        info = X.VALID | X.TYPE_HARDWARE | vector
        # Real mode pushes no error codes (SDM 27.2.1.3).
        if error is not None and v[F.GUEST_CR0] & X.CR0_PE:
            info |= X.HAS_ERROR_CODE
            v[F.ENTRY_ERROR_CODE] = error
        v[F.ENTRY_INTERRUPTION_INFO] = info

    def reinject(self) -> None:
        """An event was cut short by an exit that L0 handled itself: it is delivered again (SDM 28.2.4)."""
        v = self.v
        info = v[F.IDT_VECTORING_INFO]
        if not info & X.VALID:
            if v[F.EXIT_QUALIFICATION] & X.NMI_UNBLOCKED_BY_IRET:
                v[F.GUEST_INTERRUPTIBILITY] |= C.BLOCKING_NMI
            return
        v[F.ENTRY_INTERRUPTION_INFO] = info & ~X.NMI_UNBLOCKED_BY_IRET
        if info & X.HAS_ERROR_CODE:
            v[F.ENTRY_ERROR_CODE] = v[F.IDT_VECTORING_ERROR]
        kind = info & X.TYPE_MASK
        if kind in (X.TYPE_SOFTWARE_INTERRUPT, X.TYPE_PRIVILEGED, X.TYPE_SOFTWARE_EXCEPTION):
            v[F.ENTRY_INSTRUCTION_LENGTH] = v[F.EXIT_INSTRUCTION_LENGTH]
        elif kind == X.TYPE_NMI:
            v[F.GUEST_INTERRUPTIBILITY] &= ~C.BLOCKING_NMI

    def load_pdptes(self, v: memoryview[int], cr3: int) -> bool:
        """The four PDPTEs at `cr3` into the fields of `v`; false if one has reserved bits set (SDM 4.4.1)."""
        data = self.machine.l1.read(cr3 & 0xFFFF_FFE0, 32)
        reserved = -1 << self.machine.physical_bits | 0x1E6
        for number, pdpte in enumerate(memoryview(data).cast("Q")):
            if pdpte & 1 and pdpte & reserved:
                return False
            v[F.GUEST_PDPTE0 + number] = pdpte
        return True

    def flush_tlb(self) -> None:
        """Drops the context's cached translations (its paging mode was changed from outside)."""
        if self.shadow is not None:
            self.shadow.flushed(self.level)
        elif self.v[F.SECONDARY_CONTROLS] & C.SECONDARY_VPID:
            core_flush(self.machine, self.v[F.VPID])

    def _wake(self) -> None:
        """The local APIC accepted something. In this thread: other threads post to the event queue."""
        self.attention = True

    # --- the loop ---

    def run(self) -> Outcome:
        """Runs until the machine's outcome stands. What goes wrong is reported by level, RIP and reason."""
        machine = self.machine
        try:
            self._loop()
        except (GuestStop, SiliconError) as error:
            machine.stop(self._error(str(error)))
        except Exception as error:  # a defect of a handler: the report is the product
            self.failure = traceback.format_exc()
            machine.stop(self._error(f"L0 failed: {type(error).__name__}: {error}"))
        self._account()
        assert machine.outcome is not None
        return machine.outcome

    def _account(self) -> None:
        """Instructions by level, at the end of a run."""
        if self.level == 2:
            self._leave_l2()
            self.entry_retired = self.exit_retired
        retired = self.stats.retired
        retired[1] = self.regs[S.RETIRED] - retired[2]

    def where(self) -> str:
        """Level, RIP and last exit reason, for a message."""
        v = self.v
        raw = v[F.EXIT_REASON]
        failed = " (entry failed)" if raw & X.ENTRY_FAILURE else ""
        return f"L{self.level} at RIP {v[F.GUEST_RIP]:#x}, last exit {reason_name(raw & 0xFFFF)}{failed}"

    def _error(self, message: str) -> Outcome:
        return Outcome(Ending.ERROR, message=f"{message} ({self.where()})")

    def _loop(self) -> None:
        machine, regs, stats = self.machine, self.regs, self.stats
        enter, next_event = self.core.enter, self.events.next_deadline
        _, handlers1, handlers2 = self.handlers
        _, counts1, counts2 = stats.counts
        nobodys, times1, times2 = stats.total_ns
        guest_ns, retired = stats.guest_ns, stats.handling_retired
        deadline = FOREVER
        # Whose the time from the last exit to the next entry is; and the last exit of L2 that was reflected,
        # whose time runs until the next entry into L2.
        times, key, last_exit = nobodys, 0, 0
        waiting_key = waiting_exit = 0
        # `x[k] = x[k] + n`, not `+=`: mypyc keeps machine integers unboxed in the first only.
        while machine.outcome is None:
            if self.attention:
                self.attention = False
                if self.halted and not self._sleep():
                    return
                delivery.deliver(self)
                self.replan = True
            if self.replan:
                self.replan = False
                next_deadline = next_event()
                deadline = FOREVER if next_deadline is None else next_deadline
            if self.level == 1:
                raw = enter(self.vmcs01, deadline)
                entry_time, exit_time = regs[S.ENTRY_TIME], regs[S.EXIT_TIME]
                times[key] = times[key] + (entry_time - last_exit)
                last_exit = exit_time
                guest_ns[1] = guest_ns[1] + (exit_time - entry_time)
                if raw >> 31:  # negative, or bit 31: the entry failed
                    times, key = nobodys, 0
                    self._refused(raw)
                    continue
                key = raw & _REASON
                handlers1[key](self)
                counts1[key] = counts1[key] + 1
                times = times1
                continue
            raw = enter(self.vmcs, deadline)
            entry_time, exit_time = regs[S.ENTRY_TIME], regs[S.EXIT_TIME]
            times[key] = times[key] + (entry_time - last_exit)
            last_exit = exit_time
            guest_ns[2] = guest_ns[2] + (exit_time - entry_time)
            if waiting_key:
                times2[waiting_key] = times2[waiting_key] + (entry_time - waiting_exit)
                retired[waiting_key] = retired[waiting_key] + (self.entry_retired - self.exit_retired)
                waiting_key = 0
            self.entry_pending = False
            if raw >> 31:
                times, key = nobodys, 0
                self._refused(raw)
                continue
            key = raw & _REASON
            self.reflected = False
            handlers2[key](self)
            if self.reflected:
                waiting_key, waiting_exit = key + REFLECTED, exit_time
                counts2[waiting_key] = counts2[waiting_key] + 1
                times, key = nobodys, 0
            else:
                counts2[key] = counts2[key] + 1
                times = times2

    def _refused(self, raw: int) -> None:
        """Silicon refused the VMCS: L1's fault for L2, an error of the run for L1."""
        if self.level == 2:
            entry.refused(self, self.entered12, raw)
            return
        if self.current_shadow is not None and self.v01[F.GUEST_VMCS_LINK_POINTER] != X.NO_ADDRESS:
            # L1 wrote into its shadow VMCS by memory accesses: it is none any more.
            set_current(self, None)
            return
        rule = self.core.broken_rule
        name = f"{rule.name} (SDM {rule.section}): {rule.text}" if rule else f"{raw:#x}"
        raise GuestStop(f"L1 cannot be entered: {name}")

    def _sleep(self) -> bool:
        """HLT: until an event wakes the context (true), or the machine stops."""
        core, events, machine = self.core, self.events, self.machine
        timer = self._l2_timer_deadline()
        while True:
            now = core.now()
            events.run(now)
            if machine.stopped():
                return False
            if timer is not None and now >= timer:
                self.halted = False
                self.v[F.GUEST_PREEMPTION_TIMER] = 0
                reflect.reflect_interrupt(self, ExitReason.PREEMPTION_TIMER, 0)
                return True
            if delivery.wakes(self):
                self.halted = False
                if timer is not None:
                    self.v[F.GUEST_PREEMPTION_TIMER] = (timer - core.now()) >> machine.timer_shift
                return True
            deadline = events.next_deadline()
            if timer is not None:
                deadline = timer if deadline is None else min(timer, deadline)
            try:
                core.wait(deadline)
            except ValueError:  # virtual time does not pass by itself
                raise GuestStop("the guest sleeps, and nothing is planned that could wake it") from None

    def _l2_timer_deadline(self) -> int | None:
        """When the preemption timer of a sleeping L2 runs out: it counts in HLT too (SDM 26.5.1)."""
        if self.level != 2 or not self.entered12.uses_timer:
            return None
        if self.v[F.GUEST_ACTIVITY] == C.ACTIVITY_WAIT_FOR_SIPI:
            return None
        return self.core.now() + (self.v[F.GUEST_PREEMPTION_TIMER] << self.machine.timer_shift)


def core_flush(machine: Machine, vpid: int) -> None:
    """INVVPID, single context, in every core."""
    machine.memory.invvpid(1, vpid, 0)
