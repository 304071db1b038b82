//! Virtual interrupts (SDM vol. 3, chapter 30): TPR, PPR and EOI virtualization, self-IPIs, recognition and delivery,
//! posted-interrupt processing.
//!
//! RVI and SVI are in [`super::Controls`] while a guest runs, and in the guest interrupt status of the VMCS
//! otherwise. Who sends interrupts is not known here.

use std::sync::atomic::Ordering;

use super::apic::register as r;
use super::bits::{pin, primary};
use super::reasons::reason;
use crate::cpu::{Cpu, attention};
use crate::state::flag;
use crate::stop::{Event, EventKind, Exec};

/// "Outstanding notification" in a posted-interrupt descriptor: bit 256 (SDM table 30-1).
const OUTSTANDING: u64 = 32;

impl Cpu {
    /// An exit is due behind the instruction that executes, before any other event there.
    pub(super) fn exit_behind(&mut self, reason: u32, qualification: u64) {
        self.ctl.trap_exit = reason;
        self.ctl.trap_qualification = qualification;
        self.boundary = true;
    }

    /// A VTPR below the threshold causes an exit, at entry or behind the instruction that wrote it.
    pub(super) fn check_tpr_threshold(&mut self) {
        if (self.vtpr() >> 4) < self.ctl.tpr_threshold & 15 {
            self.exit_behind(reason::TPR_BELOW_THRESHOLD, 0);
        }
    }

    /// TPR virtualization (SDM 30.1.2).
    pub(super) fn virtualize_tpr(&mut self) {
        if self.ctl.delivers_interrupts() {
            self.virtualize_ppr();
            self.evaluate_virtual_interrupts();
        } else {
            self.check_tpr_threshold();
        }
    }

    /// PPR virtualization (SDM 30.1.3).
    fn virtualize_ppr(&mut self) {
        let (vtpr, service) = (self.vtpr(), u32::from(self.ctl.svi) & 0xf0);
        self.set_apic_register(r::VPPR, if vtpr & 0xf0 >= service { vtpr } else { service });
    }

    /// EOI virtualization (SDM 30.1.4).
    pub(super) fn virtualize_eoi(&mut self) {
        let vector = self.ctl.svi;
        self.change_vector(r::VISR, vector, false);
        self.ctl.svi = self.highest_vector(r::VISR);
        self.virtualize_ppr();
        if self.ctl.eoi_exit[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0 {
            self.exit_behind(reason::VIRTUALIZED_EOI, u64::from(vector));
        } else {
            self.evaluate_virtual_interrupts();
        }
    }

    /// Self-IPI virtualization (SDM 30.1.5).
    pub(super) fn virtualize_self_ipi(&mut self, vector: u8) {
        self.change_vector(r::VIRR, vector, true);
        self.ctl.rvi = self.ctl.rvi.max(vector);
        self.evaluate_virtual_interrupts();
    }

    /// What VM entry does to virtual interrupts (SDM 27.3.2.5): RVI and SVI, the priority, recognition.
    pub(super) fn load_virtual_interrupts(&mut self, status: u64) {
        if self.ctl.delivers_interrupts() {
            [self.ctl.rvi, self.ctl.svi] = (status as u16).to_le_bytes();
            self.virtualize_ppr();
            self.evaluate_virtual_interrupts();
        }
    }

    /// The guest interrupt status as an exit saves it; none without virtual-interrupt delivery.
    pub(super) fn interrupt_status(&self) -> Option<u64> {
        let status = u16::from_le_bytes([self.ctl.rvi, self.ctl.svi]);
        self.ctl.delivers_interrupts().then_some(u64::from(status))
    }

    /// Evaluation of pending virtual interrupts (SDM 30.2.1).
    fn evaluate_virtual_interrupts(&mut self) {
        let priority = self.apic_register(r::VPPR) >> 4 & 15;
        let window = self.ctl.primary & primary::INTERRUPT_WINDOW != 0;
        self.ctl.virtual_interrupt = !window && u32::from(self.ctl.rvi >> 4) > priority;
        self.boundary |= self.ctl.virtual_interrupt;
    }

    /// Whether a recognized virtual interrupt may be delivered as far as RFLAGS decides.
    #[inline]
    pub(crate) fn virtual_interrupt_flagged(&self) -> bool {
        self.ctl.virtual_interrupt && self.state.rflags & flag::IF != 0
    }

    /// Virtual-interrupt delivery (SDM 30.2.2) of the vector in RVI.
    ///
    /// # Errors
    /// An exit in the delivery.
    pub(crate) fn deliver_virtual_interrupt(&mut self) -> Exec {
        let vector = self.ctl.rvi;
        self.change_vector(r::VISR, vector, true);
        self.ctl.svi = vector;
        self.set_apic_register(r::VPPR, u32::from(vector) & 0xf0);
        self.change_vector(r::VIRR, vector, false);
        self.ctl.rvi = self.highest_vector(r::VIRR);
        self.ctl.virtual_interrupt = false;
        self.deliver(Event { vector, kind: EventKind::External, error: None, payload: 0, length: 0 })
    }

    /// Takes an interrupt with a vector from the doorbell. None: it was the posted-interrupt notification, and what
    /// was posted is in the virtual APIC now (SDM 30.6). Else it causes an exit, with this vector.
    pub(crate) fn take_interrupt(&mut self) -> Option<u8> {
        self.doorbell.bits.fetch_and(!attention::INTERRUPT, Ordering::AcqRel);
        let vector = self.doorbell.vector.load(Ordering::Acquire);
        let posted = self.ctl.pin & pin::POSTED_INTERRUPTS != 0 && vector == self.ctl.posted_vector;
        if !posted {
            return Some(vector);
        }
        let descriptor = self.ctl.posted_descriptor;
        if !self.memory.contains(descriptor, 64) {
            return None; // what the checks let through, but is no memory, holds no requests
        }
        self.take_bits(descriptor + OUTSTANDING, 1);
        for word in 0..4u64 {
            let requests = self.take_bits(descriptor + 8 * word, !0);
            for half in 0..2 {
                let at = r::VIRR + 0x10 * (2 * word + half);
                let bits = (requests >> (32 * half)) as u32;
                if bits != 0 {
                    self.set_apic_register(at, self.apic_register(at) | bits);
                }
            }
            if requests != 0 {
                let highest = 64 * word as u8 + (63 - requests.leading_zeros() as u8);
                self.ctl.rvi = self.ctl.rvi.max(highest);
            }
        }
        self.evaluate_virtual_interrupts();
        None
    }

    /// Clears `bits` of a word of memory atomically; which of them were set.
    fn take_bits(&self, pa: u64, bits: u64) -> u64 {
        let mut old = self.memory.read::<u64>(pa);
        while let Err(found) = self.memory.compare_exchange(pa, old, old & !bits) {
            if found == old {
                break; // not memory after all
            }
            old = found;
        }
        old & bits
    }

    /// Sets or clears a vector's bit in a 256-bit register of the virtual-APIC page.
    fn change_vector(&self, register: u64, vector: u8, set: bool) {
        let at = register + 0x10 * u64::from(vector >> 5);
        let (old, bit) = (self.apic_register(at), 1 << (vector & 31));
        self.set_apic_register(at, if set { old | bit } else { old & !bit });
    }

    /// The highest vector whose bit is set; 0 when there is none.
    fn highest_vector(&self, register: u64) -> u8 {
        (0..8u8)
            .rev()
            .find_map(|n| {
                let bits = self.apic_register(register + 0x10 * u64::from(n));
                (bits != 0).then(|| 32 * n + (31 - bits.leading_zeros() as u8))
            })
            .unwrap_or(0)
    }
}
