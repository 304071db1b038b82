//! Delivery of an event with everything that may go wrong in it: nested faults, #DF, triple fault.
//!
//! SDM vol. 3, 6.15 (interrupt 8, table 6-5) and 28.2.4. The gates themselves are in `idt`.

use crate::clock::Clock;
use crate::cpu::Cpu;
use crate::state::{cr, flag};
use crate::stop::{Event, EventKind, Exec, Stop, vector};
use crate::vmx::bits::primary;
use crate::vmx::reason;

/// What a second exception during the delivery of a first event becomes (SDM table 6-5).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Nested {
    /// Handled one after the other.
    Serial,
    /// #DF.
    Double,
    /// Shutdown.
    Triple,
}

/// SDM table 6-4: the class of an exception.
fn is_contributory(vector: u8) -> bool {
    matches!(vector, vector::DE | vector::TS | vector::NP | vector::SS | vector::GP | vector::CP)
}

fn is_page_fault(vector: u8) -> bool {
    matches!(vector, vector::PF | vector::VE)
}

fn combine(first: &Event, second: &Event) -> Nested {
    if first.kind != EventKind::Hardware || second.kind != EventKind::Hardware {
        return Nested::Serial;
    }
    let severe = is_contributory(second.vector) || is_page_fault(second.vector);
    if first.vector == vector::DF && severe {
        Nested::Triple
    } else if is_contributory(first.vector) && is_contributory(second.vector) || is_page_fault(first.vector) && severe {
        Nested::Double
    } else {
        Nested::Serial
    }
}

impl Cpu {
    /// Takes `event` through the IDT, with every nested fault up to the triple fault. On success `rip`
    /// and `next_rip` are the handler's first instruction. `rip` must be that of the instruction that
    /// faulted (or, at a boundary, the next one); software events return to `rip + event.length`.
    ///
    /// # Errors
    /// [`Stop::Exit`] only.
    pub fn deliver(&mut self, event: Event) -> Exec {
        self.deliver_chain(event, false)?;
        self.charge_delivery();
        Ok(())
    }

    /// A delivery takes a nanosecond of virtual time and one instruction of the slice: a guest whose
    /// handler faults before it retires anything must not hold time still.
    fn charge_delivery(&mut self) {
        if let Clock::Virtual { skipped } = &mut self.clock {
            *skipped = skipped.wrapping_add(1);
        }
        if self.stop_at > self.state.retired {
            self.stop_at -= 1;
        }
    }

    /// Delivery of an event that a VM entry injects: it causes no exit itself and writes none of CR2,
    /// DR6, DR7 and IA32_DEBUGCTL (SDM vol. 3, 27.6.1.1); what is nested in it does.
    ///
    /// # Errors
    /// [`Stop::Exit`] only.
    pub fn inject(&mut self, event: Event) -> Exec {
        self.delivering = None;
        self.deliver_chain(event, true)?;
        if self.ctl.primary & primary::MONITOR_TRAP != 0 {
            self.pend_monitor_trap();
        }
        Ok(())
    }

    fn deliver_chain(&mut self, mut event: Event, mut injected: bool) -> Exec {
        loop {
            if !injected {
                event = self.intercept(event)?;
            }
            self.delivering = Some(event);
            if event.kind == EventKind::Nmi {
                self.state.interruptibility |= 8;
            }
            let result = loop {
                match self.deliver_once(&event, injected) {
                    Err(Stop::Again) => {}
                    other => break other,
                }
            };
            match result {
                Ok(()) => {
                    self.delivering = None;
                    self.delivered();
                    return Ok(());
                }
                Err(Stop::Fault) => {
                    event = self.nested_fault(&event);
                    injected = false;
                }
                Err(stop) => return Err(stop),
            }
        }
    }

    /// One attempt at an event, for instructions that are events (INT n, INT3, INTO, INT1): a fault in it
    /// is the instruction's fault, and the run loop delivers it with `delivering` still set.
    ///
    /// # Errors
    /// A fault of the delivery, or an exit.
    pub(crate) fn deliver_software(&mut self, event: Event) -> Exec {
        if event.kind != EventKind::Software
            && let Some(stop) = self.check_exception(&event)
        {
            return Err(stop);
        }
        self.delivering = Some(event);
        match self.deliver_once(&event, false) {
            Ok(()) => {
                self.delivering = None;
                self.delivered();
                Ok(())
            }
            Err(Stop::Fault) => {
                self.fault = self.nested_fault(&event);
                Err(Stop::Fault)
            }
            Err(Stop::Again) => {
                self.delivering = None;
                Err(Stop::Again)
            }
            Err(stop) => Err(stop),
        }
    }

    /// The exits and the combination with an event in delivery. What an exit reports as IDT-vectoring is
    /// `delivering`: nothing for #DF that exits itself, nor for the triple fault (SDM vol. 3, 28.2.4).
    fn intercept(&mut self, event: Event) -> Exec<Event> {
        if let Some(stop) = self.check_exception(&event) {
            return Err(stop);
        }
        if event.kind == EventKind::Hardware && event.vector == vector::PF {
            self.state.cr2 = event.payload; // also when it becomes a double fault
        }
        let Some(first) = self.delivering else { return Ok(event) };
        match combine(&first, &event) {
            Nested::Serial => Ok(event),
            Nested::Double => {
                let double =
                    Event { vector: vector::DF, kind: EventKind::Hardware, error: Some(0), payload: 0, length: 0 };
                self.delivering = None;
                match self.check_exception(&double) {
                    Some(stop) => Err(stop),
                    None => Ok(double),
                }
            }
            Nested::Triple => {
                self.delivering = None;
                self.next_rip = self.state.rip;
                Err(self.exit_insn(reason::TRIPLE_FAULT, 0))
            }
        }
    }

    /// The fault that `self.fault` holds, raised while `event` was delivered: EXT is set in its error
    /// code when the event is external to the program (SDM vol. 3, 6.13).
    fn nested_fault(&self, event: &Event) -> Event {
        let mut fault = self.fault;
        let external = !matches!(event.kind, EventKind::Software | EventKind::SoftwareException);
        if external && matches!(fault.vector, vector::TS | vector::NP | vector::SS | vector::GP) {
            fault.error = fault.error.map(|error| error | 1);
        }
        fault
    }

    /// What every successful delivery leaves behind.
    fn delivered(&mut self) {
        self.state.interruptibility &= !3;
        self.state.activity = 0;
        self.next_rip = self.state.rip;
        self.events.after_delivery();
    }

    /// One attempt: registers change only when nothing can fault any more.
    fn deliver_once(&mut self, event: &Event, injected: bool) -> Exec {
        if !injected && event.kind == EventKind::Hardware {
            match event.vector {
                vector::PF => self.state.cr2 = event.payload,
                vector::DB => self.enter_debug_exception(event.payload),
                _ => {}
            }
        }
        if self.state.cr0 & cr::CR0_PE == 0 {
            self.deliver_real(event)
        } else if self.mode.long {
            self.deliver_long(event, injected)
        } else {
            self.deliver_protected(event, injected)
        }
    }

    /// RFLAGS as the frame holds them (SDM vol. 3, 17.3.1.1): RF = 1 for faults other than #DB and for
    /// what comes between the iterations of a string instruction.
    pub(super) fn pushed_flags(&self, event: &Event, injected: bool) -> u64 {
        let fault = event.kind == EventKind::Hardware
            && !matches!(event.vector, vector::DB | vector::DF | vector::MC | vector::NMI);
        let between =
            self.events.iterating && !matches!(event.kind, EventKind::Software | EventKind::SoftwareException);
        if !injected && (fault || between) { self.state.rflags | flag::RF } else { self.state.rflags }
    }

    /// The return address of the frame: software events return behind their instruction.
    pub(super) fn return_rip(&self, event: &Event) -> u64 {
        match event.kind {
            EventKind::Software | EventKind::SoftwareException | EventKind::Privileged => {
                self.state.rip.wrapping_add(u64::from(event.length))
            }
            _ => self.state.rip,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exception(vector: u8) -> Event {
        Event { vector, kind: EventKind::Hardware, error: None, payload: 0, length: 0 }
    }

    /// SDM vol. 3, table 6-5, cell by cell.
    #[test]
    fn table_6_5() {
        let benign = [vector::DB, vector::UD, vector::NM, vector::MF, vector::AC, vector::XM, vector::BR];
        let contributory = [vector::DE, vector::TS, vector::NP, vector::SS, vector::GP];
        for b in benign {
            for any in benign.iter().chain(&contributory).chain(&[vector::PF]) {
                assert_eq!(combine(&exception(b), &exception(*any)), Nested::Serial);
                assert_eq!(combine(&exception(*any), &exception(b)), Nested::Serial);
            }
        }
        for c in contributory {
            for d in contributory {
                assert_eq!(combine(&exception(c), &exception(d)), Nested::Double);
            }
            assert_eq!(combine(&exception(c), &exception(vector::PF)), Nested::Serial);
            assert_eq!(combine(&exception(vector::PF), &exception(c)), Nested::Double);
            assert_eq!(combine(&exception(vector::DF), &exception(c)), Nested::Triple);
        }
        assert_eq!(combine(&exception(vector::PF), &exception(vector::PF)), Nested::Double);
        assert_eq!(combine(&exception(vector::DF), &exception(vector::PF)), Nested::Triple);
    }

    /// Interrupts of any kind are benign (SDM vol. 3, table 6-4).
    #[test]
    fn interrupts_are_benign() {
        for kind in [EventKind::External, EventKind::Nmi, EventKind::Software] {
            let first = Event { vector: vector::GP, kind, error: None, payload: 0, length: 0 };
            assert_eq!(combine(&first, &exception(vector::GP)), Nested::Serial);
        }
    }
}
