//! Decoding: bytes to one `Insn`, and a page's bytes to a list of them.
//!
//! It chooses the handler, but knows nothing of caching, translation of addresses, or execution.

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::{Insn, SLOT_NONE, SLOT_RIP};
use crate::cpu::Bits;
use crate::interpreter::select::{self, select};

/// Most instructions in a block.
pub const MAX_INSNS: usize = 64;

/// Conditional branches to code further on that a block goes on behind.
const PASSED: u32 = 1;

/// What [`decode_one`] found.
pub enum Decoded {
    /// An instruction (possibly one that only raises #UD or #GP).
    Insn(Insn),
    /// The bytes end before the instruction does.
    Truncated,
}

/// Decodes the instruction that `bytes` begin with. `bytes` holds at least one byte.
#[must_use]
pub fn decode_one(bytes: &[u8], bits: Bits) -> Decoded {
    decode_next(&mut decoder(bytes, bits), bytes, bits)
}

fn decoder(bytes: &[u8], bits: Bits) -> Decoder<'_> {
    let bitness = match bits {
        Bits::B16 => 16,
        Bits::B32 => 32,
        Bits::B64 => 64,
    };
    Decoder::with_ip(bitness, bytes, 0, DecoderOptions::NONE)
}

/// Decodes the instruction that `decoder` is at, where it has `bytes` left.
fn decode_next(decoder: &mut Decoder<'_>, bytes: &[u8], bits: Bits) -> Decoded {
    decoder.set_ip(0);
    let iced = decoder.decode();
    match decoder.last_error() {
        DecoderError::None => Decoded::Insn(build(iced, bits)),
        DecoderError::NoMoreBytes => Decoded::Truncated,
        // 15 bytes and no end: too long (SDM vol. 2, 2.3.11), which is #GP; else #UD.
        _ if bytes.len() >= 15 && iced.len() == 15 && longer_than_15(&bytes[..15], decoder.bitness()) => {
            Decoded::Insn(plain(iced, select::too_long, 15))
        }
        _ => Decoded::Insn(plain(iced, select::invalid, iced.len().clamp(1, 15) as u8)),
    }
}

/// Whether the instruction does not end with these 15 bytes. The decoder takes no more, and says the same of 15 that are
/// no instruction: asked without a prefix that length does not depend on, it tells them apart.
fn longer_than_15(bytes: &[u8], bitness: u32) -> bool {
    if !unfinished(&bytes[..14], bitness) {
        return false;
    }
    let mut seen = 0_u32;
    let spare = bytes.iter().enumerate().find_map(|(n, &byte)| match byte {
        0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0xf0 | 0xf2 | 0xf3 => Some(Some(n)),
        0x66 | 0x67 if seen >> (byte & 7) & 1 != 0 => Some(Some(n)),
        0x66 | 0x67 => {
            seen |= 1 << (byte & 7);
            None
        }
        0x40..=0x4f if bitness == 64 => None,
        _ => Some(None),
    });
    spare.flatten().is_none_or(|n| unfinished(&[&bytes[..n], &bytes[n + 1..]].concat(), bitness))
}

/// The decoder wants more than `bytes`.
fn unfinished(bytes: &[u8], bitness: u32) -> bool {
    let mut decoder = Decoder::new(bitness, bytes, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() == DecoderError::NoMoreBytes
}

/// Decodes a block into `insns`: everything up to the first instruction that ends it (in 64-bit mode beyond one conditional
/// branch that leads further on in the page: it leaves the block where it is taken), `MAX_INSNS`, or the end of
/// `bytes` (the rest of the page). Nothing when the first instruction crosses the end of `bytes`.
/// The flag tells whether the next block may be chained to: nothing in the block changes the mode or the
/// address space.
#[must_use]
pub fn decode_block(bytes: &[u8], bits: Bits, insns: &mut Vec<Insn>) -> (usize, bool) {
    let mut decoder = decoder(bytes, bits);
    let mut at = 0;
    let mut passed = 0;
    while at < bytes.len() && insns.len() < MAX_INSNS {
        let Decoded::Insn(insn) = decode_next(&mut decoder, &bytes[at..], bits) else { break };
        at += usize::from(insn.len);
        let end = ending(&insn.iced);
        insns.push(insn);
        match end {
            Ending::No => {}
            Ending::Chained => {
                let last = insns.last();
                let goes_on = bits == Bits::B64
                    && passed < PASSED
                    && last
                        .is_some_and(|i| i.iced.is_jcc_short_or_near() && (i.imm as i64) > 0 && (i.imm as i64) < 4096);
                if !goes_on {
                    return (at, true);
                }
                passed += 1;
            }
            Ending::Unchained => return (at, false),
        }
    }
    (at, true)
}

/// Whether and how an instruction ends its block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    No,
    /// Ends it; mode and address space are as before.
    Chained,
    /// Ends it, and may have changed anything.
    Unchained,
}

pub(super) fn ending(i: &Instruction) -> Ending {
    use Mnemonic as M;
    if i.flow_control() != FlowControl::Next {
        let near = i.is_jmp_short_or_near()
            || i.is_jmp_near_indirect()
            || i.is_jcc_short_or_near()
            || i.is_call_near()
            || i.is_call_near_indirect()
            || i.is_jcx_short()
            || i.is_loop()
            || i.is_loopcc()
            || i.mnemonic() == M::Ret;
        return if near { Ending::Chained } else { Ending::Unchained };
    }
    // REP: the handler counts iterations in `state.retired` and may cut itself.
    if i.is_string_instruction() && (i.has_rep_prefix() || i.has_repne_prefix()) {
        return Ending::Unchained;
    }
    match i.mnemonic() {
        M::Sti | M::Cli | M::Popf | M::Popfd | M::Popfq | M::Lss | M::Clac | M::Stac => Ending::Unchained,
        M::Xsetbv | M::Xrstor | M::Xrstor64 | M::Invpcid | M::Lmsw | M::Serialize | M::Mwait | M::Monitor => {
            Ending::Unchained
        }
        M::Vmptrld | M::Vmclear | M::Vmxon | M::Invept | M::Invvpid | M::Vmwrite | M::Vmread => Ending::Unchained,
        // LFS, LGS and data-segment loads need not end a block; SS does (interruptibility, stack size).
        M::Mov | M::Pop if i.op0_kind() == OpKind::Register && is_segment(i.op0_register()) => Ending::Unchained,
        M::Mov if i.op0_kind() == OpKind::Register && i.op0_register().is_cr() => Ending::Unchained,
        M::Mov if i.op0_kind() == OpKind::Register && i.op0_register().is_dr() => Ending::Unchained,
        _ if i.is_privileged() => Ending::Unchained,
        _ => Ending::No,
    }
}

fn is_segment(r: Register) -> bool {
    r.is_segment_register()
}

/// An `Insn` without operands.
fn plain(iced: Instruction, run: super::Handler, len: u8) -> Insn {
    Insn {
        run,
        imm: 0,
        disp: 0,
        address_mask: !0,
        len,
        r: [0; 3],
        base: SLOT_NONE,
        index: SLOT_NONE,
        shift: 0,
        seg: 3,
        iced,
        stub: super::StubSlot::default(),
    }
}

fn build(iced: Instruction, bits: Bits) -> Insn {
    let mut insn = plain(iced, select(&iced), iced.len() as u8);
    let i = &iced;
    let mut immediate_seen = false;
    for op in 0..i.op_count() {
        match i.op_kind(op) {
            OpKind::Register => {
                if op < 3 {
                    insn.r[op as usize] = register_code(i.op_register(op));
                }
            }
            OpKind::Memory => {
                insn.base = slot(i.memory_base());
                insn.index = slot(i.memory_index());
                insn.shift = i.memory_index_scale().trailing_zeros() as u8;
                insn.address_mask = address_mask(i, bits);
                // RIP-relative: iced gives the target as decoded at address 0, so it counts from the start.
                insn.disp = i.memory_displacement64();
                insn.seg = segment(i, bits);
            }
            OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => {
                insn.address_mask = 0xffff;
                insn.seg = segment(i, bits);
            }
            OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => {
                insn.address_mask = 0xffff_ffff;
                insn.seg = segment(i, bits);
            }
            OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => insn.seg = segment(i, bits),
            OpKind::NearBranch16 => {
                insn.imm = u64::from(i.near_branch16()).wrapping_sub(i.len() as u64);
                insn.address_mask = 0xffff;
            }
            OpKind::NearBranch32 => {
                insn.imm = u64::from(i.near_branch32()).wrapping_sub(i.len() as u64);
                insn.address_mask = 0xffff_ffff;
            }
            OpKind::NearBranch64 => insn.imm = i.near_branch64().wrapping_sub(i.len() as u64),
            OpKind::FarBranch16 | OpKind::FarBranch32 => {}
            _ => {
                if !immediate_seen {
                    insn.imm = i.immediate(op);
                    immediate_seen = true;
                }
            }
        }
    }
    insn
}

fn register_code(r: Register) -> u8 {
    if matches!(r, Register::AH | Register::CH | Register::DH | Register::BH) {
        return (r as u32 - Register::AH as u32) as u8 * 8 + 1;
    }
    if r.is_gpr() { (r.full_register().number() * 8) as u8 } else { r.number() as u8 }
}

fn slot(r: Register) -> u8 {
    match r {
        Register::None => SLOT_NONE,
        Register::RIP | Register::EIP => SLOT_RIP,
        _ => (r.number() & 15) as u8,
    }
}

fn address_mask(i: &Instruction, bits: Bits) -> u64 {
    let of = |r: Register| match r.size() {
        2 => Some(0xffff),
        4 => Some(0xffff_ffff),
        8 => Some(!0),
        _ => None,
    };
    of(i.memory_base()).or_else(|| of(i.memory_index())).unwrap_or(match (i.memory_displ_size(), bits) {
        (2, _) => 0xffff,
        (4, _) => 0xffff_ffff,
        (8, _) | (_, Bits::B64) => !0,
        (_, Bits::B32) => 0xffff_ffff,
        (_, Bits::B16) => 0xffff,
    })
}

fn segment(i: &Instruction, bits: Bits) -> u8 {
    let prefix = i.segment_prefix();
    if matches!(prefix, Register::FS | Register::GS) || (prefix != Register::None && bits != Bits::B64) {
        return (prefix as u32 - Register::ES as u32) as u8;
    }
    match i.memory_base() {
        Register::BP | Register::EBP | Register::ESP | Register::RBP | Register::RSP => 2,
        _ => 3,
    }
}
