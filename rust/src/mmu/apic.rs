//! Accesses that end in the APIC-access page (SDM 30.4): `vmx` decides, this replays what L0 has done.

use crate::cpu::Cpu;
use crate::stop::{Exec, Stop};
use crate::vmx::ApicAccess;

impl Cpu {
    pub(super) fn apic_read(&mut self, linear: u64, gpa: u64, width: u32) -> Exec<u64> {
        self.apic_or_replay(linear, gpa, ApicAccess::Read, width, 0)
    }

    pub(super) fn apic_write(&mut self, linear: u64, gpa: u64, width: u32, data: u64) -> Exec {
        self.apic_or_replay(linear, gpa, ApicAccess::Write, width, data).map(|_| ())
    }

    pub(super) fn apic_fetch(&mut self, linear: u64, gpa: u64) -> Exec<u64> {
        self.apic_access(linear, gpa, ApicAccess::Fetch, 1, 0)
    }

    /// Accesses that do not exit take nothing from the replay.
    fn apic_or_replay(&mut self, linear: u64, gpa: u64, access: ApicAccess, width: u32, data: u64) -> Exec<u64> {
        match self.apic_access(linear, gpa, access, width, data) {
            Err(Stop::Exit) => self.replay_next().ok_or(Stop::Exit),
            done => done,
        }
    }
}
