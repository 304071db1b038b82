//! INT n, INT3, INTO, INT1, and the redirection of INT n in virtual-8086 mode.
//!
//! SDM vol. 2, INT n; vol. 3, 20.3.3. Delivery itself is in `events`.

use iced_x86::Code;

use crate::cpu::Cpu;
use crate::decode::Insn;
use crate::state::{cr, flag, gpr, seg};
use crate::stop::{Event, EventKind, Exec, vector};

/// INT n, INT3, INTO, INT1.
pub(super) fn int(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let (vector, kind) = match insn.iced.code() {
        Code::Int3 => (vector::BP, EventKind::SoftwareException),
        Code::Into if cpu.state.rflags & flag::OF == 0 => return Ok(()),
        Code::Into => (vector::OF, EventKind::SoftwareException),
        Code::Int1 => (vector::DB, EventKind::Privileged),
        _ => (insn.iced.immediate8(), EventKind::Software),
    };
    if kind == EventKind::Software && cpu.mode.v8086 && cpu.redirect_v8086(vector)? {
        return Ok(());
    }
    cpu.deliver_software(Event { vector, kind, error: None, payload: 0, length: insn.len })
}

impl Cpu {
    /// INT n in virtual-8086 mode (SDM vol. 3, table 20-2): true when the program's own handler was
    /// entered; false when the interrupt goes through the IDT.
    fn redirect_v8086(&mut self, vector: u8) -> Exec<bool> {
        let iopl3 = self.state.rflags & flag::IOPL == flag::IOPL;
        let vme = self.state.cr4 & cr::CR4_VME != 0;
        if !vme || self.redirection_bit(vector)? {
            return if iopl3 { Ok(false) } else { Err(self.gp0()) };
        }
        let pointer = self.read::<u32>(u64::from(vector) * 4)?;
        let mut flags = self.state.rflags;
        if !iopl3 {
            let virtual_if = if flags & flag::VIF != 0 { flag::IF } else { 0 };
            flags = flags & !flag::IF | flag::IOPL | virtual_if;
        }
        let stack = self.current_stack();
        let values = [flags, self.state.seg[seg::CS].selector, self.next_rip];
        let pushed = self.push_frame(&stack, 2, &values)?;
        self.state.gpr[gpr::RSP] = pushed;
        self.load_segment_real(seg::CS, (pointer >> 16) as u16);
        self.next_rip = u64::from(pointer & 0xffff);
        let cleared = flag::TF | flag::NT | if iopl3 { flag::IF } else { flag::VIF };
        self.state.rflags &= !cleared;
        self.update_mode();
        Ok(true)
    }

    /// The vector's bit in the software interrupt redirection bitmap, the 32 bytes below the I/O
    /// permission bitmap of the TSS.
    fn redirection_bit(&mut self, vector: u8) -> Exec<bool> {
        let tr = self.state.seg[seg::TR];
        if tr.limit < 103 {
            return Err(self.gp0());
        }
        let map = u64::from(self.read_system::<u16>(tr.base.wrapping_add(102) & 0xffff_ffff)?);
        let offset = map.wrapping_sub(32).wrapping_add(u64::from(vector / 8));
        if map < 32 || offset > tr.limit {
            return Err(self.gp0());
        }
        let byte = self.read_system::<u8>(tr.base.wrapping_add(offset) & 0xffff_ffff)?;
        Ok(byte >> (vector % 8) & 1 != 0)
    }
}
