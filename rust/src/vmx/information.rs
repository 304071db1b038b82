//! What a VM exit reports: basic information, interruption information, VM-exit instruction information.
//!
//! SDM vol. 3, 28.2. Filled where the exit is caused, written to the VMCS by `exit`.

use iced_x86::{Mnemonic, OpKind, Register};

use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::seg;
use crate::stop::{Event, EventKind, Stop};

/// What a VM exit will write into the VMCS (SDM 25.9).
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct ExitInfo {
    pub reason: u32,
    pub qualification: u64,
    pub guest_physical: u64,
    pub guest_linear: u64,
    pub instruction_length: u32,
    pub instruction_info: u32,
    pub interruption_info: u32,
    pub interruption_error: u32,
}

/// Interruption information: bit 11, an error code is there.
pub const ERROR_CODE_VALID: u32 = 1 << 11;
/// VM-exit interruption information, bit 12: NMI unblocking due to IRET.
pub const NMI_UNBLOCKING: u32 = 1 << 12;
/// Interruption information: bit 31, valid.
pub const VALID: u32 = 1 << 31;

/// Interruption information of an event (SDM tables 25-16, 25-18, 25-19).
#[must_use]
pub fn interruption(event: &Event) -> u32 {
    let error = if event.error.is_some() { ERROR_CODE_VALID } else { 0 };
    u32::from(event.vector) | (event.kind as u32) << 8 | error | VALID
}

impl Cpu {
    /// Fills [`Cpu::exit`] for an exit caused by the instruction that executes.
    #[cold]
    pub fn exit_insn(&mut self, reason: u32, qualification: u64) -> Stop {
        self.exit =
            ExitInfo { reason, qualification, instruction_length: u32::from(self.insn_len()), ..ExitInfo::default() };
        Stop::Exit
    }

    /// The same with the VM-exit instruction information of `insn` (SDM tables 28-8 to 28-15).
    #[cold]
    pub fn exit_insn_info(&mut self, reason: u32, qualification: u64, insn: &Insn) -> Stop {
        self.exit_insn(reason, qualification);
        self.exit.instruction_info = self.instruction_info(insn);
        Stop::Exit
    }

    /// The same for an instruction whose exit qualification is the displacement of its memory operand:
    /// INVEPT, INVPCID, INVVPID, LGDT .. STR, VMCLEAR .. VMXON, VMREAD, VMWRITE (SDM 28.2.1).
    #[cold]
    pub fn exit_insn_memory(&mut self, reason: u32, insn: &Insn) -> Stop {
        let displacement = self.displacement(insn);
        self.exit_insn_info(reason, displacement, insn)
    }

    /// Displacement of the memory operand, sign-extended; RIP-relative: the address. 0 if there is none.
    #[must_use]
    pub fn displacement(&self, insn: &Insn) -> u64 {
        let i = &insn.iced;
        if !(0..i.op_count()).any(|n| i.op_kind(n) == OpKind::Memory) {
            return 0;
        }
        if i.is_ip_rel_memory_operand() {
            // iced gives the address of an instruction at `i.ip()`.
            return i.ip_rel_memory_address().wrapping_sub(i.ip()).wrapping_add(self.state.rip);
        }
        match (i.memory_displ_size(), self.mode.bits) {
            (0, _) => 0,
            (_, Bits::B64) => i.memory_displacement64(),
            _ => u64::from(i.memory_displacement64() as u32),
        }
    }

    /// VM-exit instruction information.
    fn instruction_info(&self, insn: &Insn) -> u32 {
        let i = &insn.iced;
        let mnemonic = i.mnemonic();
        let address_size = match insn.address_mask {
            0xffff => 0,
            0xffff_ffff => 1,
            _ => 2,
        };
        let segment = u32::from(insn.seg) & 7;
        if is_string_io(mnemonic) {
            return address_size << 7 | segment << 15;
        }
        let operands = i.op_count();
        let memory = (0..operands).any(|n| i.op_kind(n) == OpKind::Memory);
        let mut registers = (0..operands).filter(|&n| i.op_kind(n) == OpKind::Register).map(|n| i.op_register(n));
        let mut info = 0;
        if memory {
            let scale = i.memory_index_scale().trailing_zeros() & 3;
            info |= scale | address_size << 7 | segment << 15;
            info |= match i.memory_index() {
                Register::None => 1 << 22,
                register => number(register) << 18,
            };
            info |= match i.memory_base() {
                // RIP-relative has no base register either.
                Register::None | Register::RIP | Register::EIP => 1 << 27,
                register => number(register) << 23,
            };
        } else {
            info |= 1 << 10;
        }
        use Mnemonic as M;
        match mnemonic {
            M::Sgdt | M::Sidt | M::Lgdt | M::Lidt => {
                let wide = i.op_kind(0) == OpKind::Memory && !is_16bit_table(insn);
                info |= if wide { 1 << 11 } else { 0 };
                info |= match mnemonic {
                    M::Sgdt => 0,
                    M::Sidt => 1,
                    M::Lgdt => 2,
                    _ => 3,
                } << 28;
            }
            M::Sldt | M::Str | M::Lldt | M::Ltr => {
                info |= registers.next().map_or(0, number) << 3;
                info |= match mnemonic {
                    M::Sldt => 0,
                    M::Str => 1,
                    M::Lldt => 2,
                    _ => 3,
                } << 28;
            }
            M::Rdrand | M::Rdseed => {
                // Only the destination and the operand size are defined.
                let register = i.op_register(0);
                let size = match register.size() {
                    2 => 0,
                    4 => 1,
                    _ => 2,
                };
                return number(register) << 3 | size << 11;
            }
            M::Vmread | M::Vmwrite => {
                // VMREAD: operand 0 is r/m, operand 1 the field. VMWRITE: operand 0 is the field.
                let (field, other) = if mnemonic == M::Vmread { (1, 0) } else { (0, 1) };
                info |= number(i.op_register(field)) << 28;
                if i.op_kind(other) == OpKind::Register {
                    info |= number(i.op_register(other)) << 3;
                }
            }
            M::Invept | M::Invvpid | M::Invpcid => info |= registers.next().map_or(0, number) << 28,
            _ => {}
        }
        info
    }

    /// The exit that an exception causes if the exception bitmap says so (SDM 26.2). `event` is the
    /// exception before delivery; software interrupts (INT n) and external interrupts never cause one.
    pub fn check_exception(&mut self, event: &Event) -> Option<Stop> {
        use super::bits::pin;
        let exits = match event.kind {
            EventKind::Nmi => self.ctl.pin & pin::NMI != 0,
            EventKind::Hardware | EventKind::SoftwareException | EventKind::Privileged => {
                let bit = self.ctl.exception_bitmap >> (event.vector & 31) & 1 != 0;
                if event.vector == crate::stop::vector::PF && event.kind == EventKind::Hardware {
                    bit == (event.error.unwrap_or(0) & self.ctl.pf_mask == self.ctl.pf_match)
                } else {
                    bit
                }
            }
            EventKind::External | EventKind::Software | EventKind::Other => false,
        };
        exits.then(|| self.exit_exception(event))
    }

    /// VM exit with the exception or NMI in its interruption information.
    #[cold]
    fn exit_exception(&mut self, event: &Event) -> Stop {
        let software = matches!(event.kind, EventKind::SoftwareException | EventKind::Privileged);
        let qualification = match event.vector {
            crate::stop::vector::PF | crate::stop::vector::DB if event.kind != EventKind::Nmi => event.payload,
            _ => 0,
        };
        let interruption_info = interruption(event);
        // SDM 28.2.3: bit 12 is undefined for #DF and where IDT-vectoring information is valid.
        let unblocking = if self.events.iret_unblocked_nmi { NMI_UNBLOCKING } else { 0 };
        self.exit = ExitInfo {
            reason: super::reason::EXCEPTION_OR_NMI,
            qualification,
            interruption_info: interruption_info | unblocking,
            interruption_error: event.error.unwrap_or(0),
            instruction_length: if software { u32::from(event.length) } else { 0 },
            ..ExitInfo::default()
        };
        Stop::Exit
    }
}

fn is_string_io(m: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(m, M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd)
}

/// LGDT .. SIDT with a 16-bit operand size.
fn is_16bit_table(insn: &Insn) -> bool {
    use iced_x86::Code as C;
    matches!(insn.iced.code(), C::Lgdt_m1632_16 | C::Lidt_m1632_16 | C::Sgdt_m1632_16 | C::Sidt_m1632_16)
}

/// Number of a general-purpose register, 0 to 15.
fn number(register: Register) -> u32 {
    if register.is_gpr() { register.full_register().number() as u32 } else { 0 }
}

/// Segment that string output reads through: DS unless overridden; INS always writes ES.
#[must_use]
pub fn string_segment(insn: &Insn, input: bool) -> usize {
    if input { seg::ES } else { usize::from(insn.seg & 7) }
}
