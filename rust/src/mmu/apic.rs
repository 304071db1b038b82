//! Accesses that end in the APIC-access page (SDM 30.4), on their way to `vmx`.

use super::assist::AccessKind;
use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};

/// Basic exit reason (SDM appendix C).
const APIC_ACCESS: u32 = 44;

impl Cpu {
    pub(super) fn apic_read(&mut self, linear: u64, offset: u64, width: u32) -> Exec<u64> {
        self.apic_exit(linear, offset, width, AccessKind::Read)
    }

    pub(super) fn apic_write(&mut self, linear: u64, offset: u64, width: u32, _data: u64) -> Exec {
        self.apic_exit(linear, offset, width, AccessKind::Write).map(|_| ())
    }

    pub(super) fn apic_fetch(&mut self, linear: u64, offset: u64) -> Exec<u64> {
        self.apic_exit(linear, offset, 1, AccessKind::Fetch)
    }

    /// APIC-access VM exit (SDM table 28-6): offset, and access type 0 read, 1 write, 2 fetch, 3 while an
    /// event is delivered.
    fn apic_exit(&mut self, linear: u64, offset: u64, _width: u32, kind: AccessKind) -> Exec<u64> {
        let kind = if self.delivering.is_some() { 3 } else { kind as u64 };
        self.exit = crate::vmx::ExitInfo {
            reason: APIC_ACCESS,
            qualification: (offset & 0xfff) | kind << 12,
            guest_linear: linear,
            ..Default::default()
        };
        Err(Stop::Exit)
    }
}
