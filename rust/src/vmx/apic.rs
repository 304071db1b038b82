//! The virtual-APIC page as instructions reach it (SDM vol. 3, 30.3 to 30.5): CR8, accesses to the APIC-access page,
//! MSRs of x2APIC mode.
//!
//! Which access is virtualized, and what it does to the page. What follows from it (priorities, interrupts, exits
//! behind the instruction) lies in `virtual_interrupts`.

use super::bits::{primary, secondary};
use super::reasons::reason;
use crate::cpu::Cpu;
use crate::stop::Exec;

/// Offsets of registers in the virtual-APIC page.
#[allow(missing_docs)]
pub(super) mod register {
    pub const VTPR: u64 = 0x80;
    pub const VPPR: u64 = 0xa0;
    pub const VEOI: u64 = 0xb0;
    pub const VISR: u64 = 0x100;
    pub const VIRR: u64 = 0x200;
    pub const VICR_LO: u64 = 0x300;
    pub const VICR_HI: u64 = 0x310;
    pub const SELF_IPI: u64 = 0x3f0;
}
use register as r;

/// x2APIC registers as MSRs.
const MSR_TPR: u32 = 0x808;
const MSR_EOI: u32 = 0x80b;
const MSR_SELF_IPI: u32 = 0x83f;

/// Registers (offset / 16) that "APIC-register virtualization" lets be read: 02H, 03H, 08H, 0BH, 0DH to 0FH, ISR, TMR,
/// IRR, ESR, ICR, LVT, initial count, divide configuration (SDM 30.4.2).
const READABLE: u64 = 1 << 0x02
    | 1 << 0x03
    | 1 << 0x08
    | 1 << 0x0b
    | 7 << 0x0d
    | 0xff << 0x10
    | 0xff << 0x18
    | 0xff << 0x20
    | 1 << 0x28
    | 3 << 0x30
    | 0x3f << 0x32
    | 1 << 0x38
    | 1 << 0x3e;
/// And written (SDM 30.4.3.1).
const WRITABLE: u64 =
    1 << 0x02 | 1 << 0x08 | 1 << 0x0b | 7 << 0x0d | 1 << 0x28 | 3 << 0x30 | 0x3f << 0x32 | 1 << 0x38 | 1 << 0x3e;
/// Without it: the TPR, and with "virtual-interrupt delivery" writes of EOI and of the lower half of ICR.
const TPR_ONLY: u64 = 1 << 0x08;
const WITH_DELIVERY: u64 = TPR_ONLY | 1 << 0x0b | 1 << 0x30;

/// How an instruction came to the APIC-access page (SDM table 28-6, bits 15:12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum ApicAccess {
    /// Linear read during instruction execution.
    Read = 0,
    /// Linear write during instruction execution.
    Write = 1,
    /// Instruction fetch.
    Fetch = 2,
    /// Linear access during event delivery.
    Delivery = 3,
    /// Guest-physical access during event delivery.
    PhysicalDelivery = 10,
    /// Guest-physical access for an instruction fetch or during execution (page walks).
    Physical = 15,
}

impl Cpu {
    /// CR8 as MOV from CR8 reads it: VTPR 7:4 under "use TPR shadow".
    #[must_use]
    pub fn cr8(&mut self) -> u64 {
        if self.ctl.primary & primary::TPR_SHADOW != 0 { u64::from(self.vtpr() >> 4 & 15) } else { self.state.cr8 }
    }

    /// MOV to CR8 that did not exit; bits 63:4 were checked by the caller.
    pub fn set_cr8(&mut self, value: u64) {
        if self.ctl.primary & primary::TPR_SHADOW != 0 {
            self.set_vtpr((value as u32 & 15) << 4);
        } else {
            self.state.cr8 = value & 15;
        }
    }

    /// VTPR 7:0.
    pub(super) fn vtpr(&self) -> u32 {
        self.apic_register(r::VTPR) & 0xff
    }

    /// Writes VTPR, of which bytes 3:1 are 0, and virtualizes the TPR.
    fn set_vtpr(&mut self, value: u32) {
        self.set_apic_register(r::VTPR, value & 0xff);
        self.virtualize_tpr();
    }

    /// A register of the virtual-APIC page.
    pub(super) fn apic_register(&self, offset: u64) -> u32 {
        self.host_u32(self.ctl.virtual_apic_pa.wrapping_add(offset))
    }

    /// Writes one.
    pub(super) fn set_apic_register(&self, offset: u64, value: u32) {
        self.set_host_u32(self.ctl.virtual_apic_pa.wrapping_add(offset), value);
    }

    /// RDMSR of an x2APIC register that "virtualize x2APIC mode" answers (SDM 30.5); none: the physical APIC's.
    #[must_use]
    pub fn x2apic_read(&mut self, msr: u32) -> Option<u64> {
        if self.ctl.secondary & secondary::X2APIC == 0 {
            return None;
        }
        if msr == MSR_TPR {
            return Some(u64::from(self.vtpr()));
        }
        if self.ctl.secondary & secondary::APIC_REGISTER == 0 {
            return None;
        }
        let offset = u64::from(msr & 0xff) << 4;
        Some(u64::from(self.apic_register(offset)) | u64::from(self.apic_register(offset + 4)) << 32)
    }

    /// WRMSR of an x2APIC register: true when "virtualize x2APIC mode" took it (SDM 30.5).
    ///
    /// # Errors
    /// #GP(0) for a value with reserved bits.
    pub fn x2apic_write(&mut self, msr: u32, value: u64) -> Exec<bool> {
        if self.ctl.secondary & secondary::X2APIC == 0 {
            return Ok(false);
        }
        let delivery = self.ctl.delivers_interrupts();
        let most = match msr {
            MSR_TPR => 0xff,
            MSR_EOI if delivery => 0,
            MSR_SELF_IPI if delivery => 0xff,
            _ => return Ok(false),
        };
        if value > most {
            return Err(self.gp0());
        }
        let value = value as u32;
        match msr {
            MSR_TPR => self.set_vtpr(value),
            MSR_EOI => {
                self.set_apic_register(r::VEOI, 0);
                self.virtualize_eoi();
            }
            _ => {
                self.set_apic_register(r::SELF_IPI, value);
                if value >> 4 == 0 {
                    self.exit_behind(reason::APIC_WRITE, r::SELF_IPI);
                } else {
                    self.virtualize_self_ipi(value as u8);
                }
            }
        }
        Ok(true)
    }

    /// Whether an access to the APIC-access page is virtualized: from an instruction, within the 32 bits of a register
    /// that the controls name (SDM 30.4.2 and 30.4.3.1).
    fn virtualizes(&self, offset: u64, width: u32, write: bool) -> bool {
        let registers = if self.ctl.primary & primary::TPR_SHADOW == 0 {
            0
        } else if self.ctl.secondary & secondary::APIC_REGISTER != 0 {
            if write { WRITABLE } else { READABLE }
        } else if write && self.ctl.delivers_interrupts() {
            WITH_DELIVERY
        } else {
            TPR_ONLY
        };
        offset < 0x400 && registers >> (offset >> 4) & 1 != 0 && (offset & 15) + u64::from(width) <= 4
    }

    /// An access that ended in the APIC-access page, at `guest_physical` (of which bits 11:0 are the
    /// register): virtualized, or an exit with the assist filled. A read returns its data.
    ///
    /// # Errors
    /// The exit.
    pub fn apic_access(
        &mut self,
        linear: u64,
        guest_physical: u64,
        access: ApicAccess,
        width: u32,
        data: u64,
    ) -> Exec<u64> {
        let offset = guest_physical & 0xfff;
        let access = match access {
            ApicAccess::Read | ApicAccess::Write if self.delivering.is_some() => ApicAccess::Delivery,
            other => other,
        };
        match access {
            ApicAccess::Read if self.virtualizes(offset, width, false) => {
                return Ok(u64::from(self.apic_register(offset & !3) >> (8 * (offset & 3))));
            }
            ApicAccess::Write if self.virtualizes(offset, width, true) => {
                let shift = 8 * (offset & 3);
                let mask = (u32::MAX >> (32 - 8 * width)) << shift;
                let old = self.apic_register(offset & !3);
                self.set_apic_register(offset & !3, old & !mask | (data as u32) << shift & mask);
                self.emulate_apic_write(offset & !3, offset);
                return Ok(0);
            }
            _ => {}
        }
        let stop = self.exit_insn(reason::APIC_ACCESS, offset | (access as u64) << 12);
        self.exit.guest_linear = linear;
        let write = matches!(access, ApicAccess::Write);
        self.state.assist_kind = if write { 4 } else { 3 };
        self.state.assist_address = guest_physical;
        self.state.assist_width = u64::from(width);
        self.state.assist_data = if write { data } else { 0 };
        Err(stop)
    }

    /// What a write that reached the virtual-APIC page causes behind the instruction (SDM 30.4.3.2). `offset` is
    /// where the access began.
    fn emulate_apic_write(&mut self, register: u64, offset: u64) {
        match register {
            r::VTPR => self.set_vtpr(self.vtpr()),
            r::VEOI if self.ctl.delivers_interrupts() => {
                self.set_apic_register(r::VEOI, 0);
                self.virtualize_eoi();
            }
            r::VICR_LO if self.ctl.delivers_interrupts() && is_self_ipi(self.apic_register(r::VICR_LO)) => {
                self.virtualize_self_ipi(self.apic_register(r::VICR_LO) as u8);
            }
            r::VICR_HI => self.set_apic_register(r::VICR_HI, self.apic_register(r::VICR_HI) & 0xff00_0000),
            _ => self.exit_behind(reason::APIC_WRITE, offset),
        }
    }
}

/// A fixed, edge-triggered interrupt to oneself with a legal vector, and no reserved bits (SDM 30.4.3.2).
const fn is_self_ipi(icr: u32) -> bool {
    const RESERVED: u32 = 0xfff0_0000 | 3 << 16 | 1 << 13 | 1 << 12;
    const SELF: u32 = 1 << 18;
    icr & (RESERVED | 3 << 18 | 1 << 15 | 7 << 8) == SELF && icr & 0xf0 != 0
}
