//! VMREAD and VMWRITE under VMCS shadowing (SDM 26.1.3, 25.10, 31.3): the shadow VMCS is accessed without an exit.
//!
//! The shadow VMCS is the region that the VMCS link pointer names. What it belongs to is L0's matter; it may lie in
//! RAM that guests can write too, so that it may hold anything, and code.

use super::bits::secondary;
use super::fields::{self, header, slot};
use super::reasons::reason;
use super::vmcs::VmcsPage;
use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::flag;
use crate::stop::Exec;

/// VM-instruction error 12: unsupported VMCS component.
const UNSUPPORTED_COMPONENT: u64 = 12;

impl Cpu {
    /// VMREAD of `encoding`: the value, to be written by the caller, who then calls [`Cpu::vm_succeed`].
    /// None: it failed and the flags say so. Ask after #UD and before the CPL check (SDM, VMREAD).
    ///
    /// # Errors
    /// The exit, or #GP(0) for CPL above 0.
    pub fn shadow_vmread(&mut self, encoding: u64, insn: &Insn) -> Exec<Option<u64>> {
        let encoding = if self.mode.bits == Bits::B64 { encoding } else { encoding & 0xffff_ffff };
        if self.shadow_exits(encoding, self.ctl.vmread_bitmap) {
            return Err(self.exit_insn_memory(reason::VMREAD, insn));
        }
        if self.cpl() != 0 {
            return Err(self.gp0());
        }
        let Some(shadow) = self.shadow_vmcs() else {
            self.vm_fail_invalid();
            return Ok(None);
        };
        let Some((field, high)) = fields::lookup(encoding) else {
            self.vm_fail_valid(UNSUPPORTED_COMPONENT);
            return Ok(None);
        };
        let value = shadow.get(usize::from(field.slot));
        Ok(Some(if high { value >> 32 } else { value & field.mask() }))
    }

    /// VMWRITE of `encoding`. `value` reads the source operand, after the checks that come before it. Sets
    /// the flags of success or failure.
    ///
    /// # Errors
    /// The exit, #GP(0) for CPL above 0, or what reading the source raises.
    pub fn shadow_vmwrite(&mut self, encoding: u64, insn: &Insn, value: impl FnOnce(&mut Self) -> Exec<u64>) -> Exec {
        let encoding = if self.mode.bits == Bits::B64 { encoding } else { encoding & 0xffff_ffff };
        if self.shadow_exits(encoding, self.ctl.vmwrite_bitmap) {
            return Err(self.exit_insn_memory(reason::VMWRITE, insn));
        }
        if self.cpl() != 0 {
            return Err(self.gp0());
        }
        let value = value(self)?;
        let Some(shadow) = self.shadow_vmcs() else {
            self.vm_fail_invalid();
            return Ok(());
        };
        let Some((field, high)) = fields::lookup(encoding) else {
            self.vm_fail_valid(UNSUPPORTED_COMPONENT);
            return Ok(());
        };
        let at = usize::from(field.slot);
        let old = shadow.get(at);
        let new = if high {
            old & 0xffff_ffff | value << 32
        } else if matches!(field.width(), fields::Width::W64) && self.mode.bits != Bits::B64 {
            old & !0xffff_ffff | value & 0xffff_ffff
        } else {
            value & field.mask()
        };
        if new != old {
            self.write_shadow(&shadow, at, new);
            let (written, group) = (shadow.get(header::WRITTEN), 1 << field.group as u8);
            if written & group == 0 {
                self.write_shadow(&shadow, header::WRITTEN, written | group);
            }
        }
        self.vm_succeed();
        Ok(())
    }

    /// SDM 26.1.3: without shadowing, for an encoding above 15 bits, or where the bitmap says so.
    fn shadow_exits(&self, encoding: u64, bitmap: u64) -> bool {
        if self.ctl.secondary & secondary::VMCS_SHADOWING == 0 || encoding >> 15 != 0 {
            return true;
        }
        self.host_byte(bitmap.wrapping_add(encoding / 8)) >> (encoding % 8) & 1 != 0
    }

    /// Writes a slot of the shadow VMCS as the memory that it is.
    fn write_shadow(&self, shadow: &VmcsPage, slot: usize, value: u64) {
        self.memory.write(shadow.host_pa + 8 * slot as u64, value);
    }

    /// The region that the VMCS link pointer names, if any.
    fn shadow_vmcs(&self) -> Option<VmcsPage> {
        self.vmcs_at(self.vmcs.get(slot::GUEST_VMCS_LINK_POINTER))
    }

    /// VMsucceed (SDM 31.2).
    pub fn vm_succeed(&mut self) {
        self.state.rflags &= !flag::STATUS;
    }

    /// VMfailInvalid.
    pub fn vm_fail_invalid(&mut self) {
        self.state.rflags = self.state.rflags & !flag::STATUS | flag::CF;
    }

    /// VMfailValid: the number goes to the current VMCS, which the shadow VMCS is not.
    fn vm_fail_valid(&mut self, error: u64) {
        self.state.rflags = self.state.rflags & !flag::STATUS | flag::ZF;
        self.vmcs.set(slot::VM_INSTRUCTION_ERROR, error);
    }
}
