//! Control registers: MOV to and from CR0, CR2, CR3, CR4 and CR8, CLTS, LMSW, SMSW (SDM vol. 3, 2.5).
//!
//! The intercepts of VMX non-root operation are asked by the instructions; [`Cpu::write_cr`] is what
//! remains of a write when no exit happens; what VMX operation fixes is checked there too. EFER lies in `msr`.

use iced_x86::{OpKind, Register};

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::{cr, seg};
use crate::stop::Exec;

use super::operand::number;
use super::segment::{access, system_type};

/// CR0 bits that exist; a write to the others is ignored.
const CR0_BITS: u64 = 0xe005_003f;
/// CR0 bits whose change reloads the PDPTEs under PAE paging (SDM vol. 3, 4.4.1).
const CR0_RELOAD: u64 = cr::CR0_CD | cr::CR0_NW | cr::CR0_PG;
/// CR4 bits likewise.
const CR4_RELOAD: u64 = cr::CR4_PAE | cr::CR4_PGE | cr::CR4_PSE | cr::CR4_SMEP;
/// CR3 bit 63 with CR4.PCIDE: keep the PCID's translations.
const NO_FLUSH: u64 = 1 << 63;

/// CR0..CR8 as iced names them.
fn control_number(register: Register) -> u8 {
    (register as u32).wrapping_sub(Register::CR0 as u32) as u8
}

/// MOV r, CRn.
pub(super) fn mov_from_cr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = control_number(insn.iced.op1_register());
    let gpr = number(insn.iced.op0_register());
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    cpu.check_cr_read(n, gpr as u8)?;
    let value = cpu.cr_read_value(n);
    cpu.set_gpr_operand(insn, 0, value);
    Ok(())
}

/// MOV CRn, r.
pub(super) fn mov_to_cr(cpu: &mut Cpu, insn: &Insn) -> Exec {
    let n = control_number(insn.iced.op0_register());
    let gpr = number(insn.iced.op1_register());
    if !matches!(n, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let mask = if cpu.mode.bits == Bits::B64 { !0 } else { 0xffff_ffff };
    let value = cpu.state.gpr[gpr] & mask;
    let value = cpu.check_cr_write(n, gpr as u8, value)?;
    cpu.write_cr(n, value)
}

/// CLTS.
pub(super) fn clts(cpu: &mut Cpu, _insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    if cpu.check_clts()? {
        cpu.state.cr0 &= !cr::CR0_TS;
    }
    Ok(())
}

/// LMSW: PE, MP, EM and TS; PE can be set, not cleared.
pub(super) fn lmsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    if cpu.cpl() != 0 {
        return Err(cpu.gp0());
    }
    let memory = insn.iced.op0_kind() == OpKind::Memory;
    let linear = if memory { Some(cpu.mem(insn, 2, false)?) } else { None };
    let source = cpu.rm16(insn, 0)?;
    let value = cpu.check_lmsw(source, linear)?;
    cpu.write_cr(0, value)
}

/// SMSW: the low word to memory, as much of CR0 as fits to a register.
pub(super) fn smsw(cpu: &mut Cpu, insn: &Insn) -> Exec {
    cpu.check_umip()?;
    let value = cpu.cr_read_value(0);
    cpu.set_rm16(insn, 0, value)
}

impl Cpu {
    /// User-mode instruction prevention: SGDT, SIDT, SLDT, SMSW, STR outside CPL 0 (SDM vol. 3, 2.5).
    pub(super) fn check_umip(&mut self) -> Exec {
        if self.state.cr4 & cr::CR4_UMIP != 0 && self.cpl() != 0 {
            return Err(self.gp0());
        }
        Ok(())
    }

    /// Writes control register `n` (0, 2, 3, 4, 8) with all checks of MOV to CR, after intercepts.
    ///
    /// # Errors
    /// #GP(0) where the SDM forbids the value, #UD for a register that does not exist.
    pub fn write_cr(&mut self, n: u8, value: u64) -> Exec {
        match n {
            0 => self.write_cr0(value),
            2 => {
                self.state.cr2 = value;
                Ok(())
            }
            3 => self.write_cr3(value),
            4 => self.write_cr4(value),
            8 if value >> 4 == 0 => {
                self.set_cr8(value);
                Ok(())
            }
            8 => Err(self.gp0()),
            _ => Err(self.ud()),
        }
    }

    /// PAE paging, whose PDPTEs are registers.
    fn pae_paging(cr0: u64, cr4: u64, long: bool) -> bool {
        cr0 & cr::CR0_PG != 0 && cr4 & cr::CR4_PAE != 0 && !long
    }

    fn write_cr0(&mut self, value: u64) -> Exec {
        let old = self.state.cr0;
        let efer = self.state.efer;
        let set = |bit: u64| value & bit != 0;
        if value >> 32 != 0 || set(cr::CR0_PG) && !set(cr::CR0_PE) || set(cr::CR0_NW) && !set(cr::CR0_CD) {
            return Err(self.gp0());
        }
        let value = value & CR0_BITS | cr::CR0_ET;
        let turned_on = value & !old & cr::CR0_PG != 0;
        let turned_off = old & !value & cr::CR0_PG != 0;
        let mut long = self.mode.long;
        if turned_off {
            if self.mode.bits == Bits::B64 || self.state.cr4 & cr::CR4_PCIDE != 0 {
                return Err(self.gp0());
            }
            long = false;
        }
        if turned_on && efer & cr::EFER_LME != 0 {
            let tr = &self.state.seg[seg::TR];
            let tss16 = tr.access & access::UNUSABLE == 0 && tr.access & 15 == system_type::TSS16_BUSY;
            let cs_long = self.state.seg[seg::CS].access & access::LONG != 0;
            if self.state.cr4 & cr::CR4_PAE == 0 || cs_long || tss16 {
                return Err(self.gp0());
            }
            long = true;
        }
        if (value ^ old) & CR0_RELOAD != 0 && Self::pae_paging(value, self.state.cr4, long) {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr0 = value;
        self.state.efer = efer & !cr::EFER_LMA | if long { cr::EFER_LMA } else { 0 };
        self.update_mode();
        self.mmu_cr_written(0, old, false);
        Ok(())
    }

    fn write_cr3(&mut self, value: u64) -> Exec {
        let old = self.state.cr3;
        let no_flush = self.state.cr4 & cr::CR4_PCIDE != 0 && value & NO_FLUSH != 0;
        let value = if no_flush { value & !NO_FLUSH } else { value };
        if value & !self.model.physical_mask() != 0 {
            return Err(self.gp0());
        }
        if Self::pae_paging(self.state.cr0, self.state.cr4, self.mode.long) {
            self.load_pdptes(value)?;
        }
        self.state.cr3 = value;
        self.mmu_cr_written(3, old, no_flush);
        Ok(())
    }

    fn write_cr4(&mut self, value: u64) -> Exec {
        let old = self.state.cr4;
        let set = value & !old;
        let cleared = old & !value;
        if value & !self.model.cr4_bits() != 0
            || cleared & cr::CR4_PAE != 0 && self.mode.long
            || set & cr::CR4_PCIDE != 0 && (!self.mode.long || self.state.cr3 & 0xfff != 0)
        {
            return Err(self.gp0());
        }
        if (value ^ old) & CR4_RELOAD != 0 && Self::pae_paging(self.state.cr0, value, self.mode.long) {
            self.load_pdptes(self.state.cr3)?;
        }
        self.state.cr4 = value;
        self.update_mode();
        self.mmu_cr_written(4, old, false);
        Ok(())
    }
}
