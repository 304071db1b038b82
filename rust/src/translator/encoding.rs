//! An instruction's bytes taken apart, so that it can be written again with other registers or with its
//! memory operand at a host address. 64-bit mode, legacy and VEX encodings.

use super::asm::{Address, Asm};

/// The parts of an encoding that a rewrite keeps.
#[derive(Clone, Copy, Debug)]
pub struct Encoding<'a> {
    /// 66, F2, F3 and F0 prefixes, in their order (segment and address-size prefixes are gone).
    prefixes: [u8; 4],
    prefix_count: usize,
    /// REX, or 0.
    rex: u8,
    /// VEX: map, then W, L and pp as in the third byte.
    vex: Option<(u8, u8)>,
    vvvv: u8,
    /// Escape bytes and opcode.
    opcode: &'a [u8],
    modrm: Option<u8>,
    /// 4-bit numbers of the reg and rm fields (or of the register in the opcode).
    reg: u8,
    rm: u8,
    /// Immediates.
    tail: &'a [u8],
}

/// What replaces the rm operand.
#[derive(Clone, Copy, Debug)]
pub enum Rm {
    /// This register.
    Register(u8),
    /// Memory at a host address.
    Memory(Address),
}

fn one_byte_has_modrm(opcode: u8) -> bool {
    match opcode {
        0x00..=0x3f => opcode & 7 < 4,
        0x63 | 0x69 | 0x6b | 0x80..=0x8f | 0xc0 | 0xc1 | 0xc6 | 0xc7 | 0xd0..=0xd3 | 0xd8..=0xdf => true,
        0xf6 | 0xf7 | 0xfe | 0xff => true,
        _ => false,
    }
}

fn two_byte_has_modrm(opcode: u8) -> bool {
    !matches!(opcode, 0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x37 | 0x77 | 0x80..=0x8f | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf)
}

fn is_prefix(byte: u8) -> bool {
    matches!(byte, 0x66 | 0xf2 | 0xf3 | 0xf0 | 0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 | 0x40..=0x4f)
}

impl<'a> Encoding<'a> {
    /// Takes `bytes`, one valid instruction, apart; `None` for encodings that are not covered.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut e = Self {
            prefixes: [0; 4],
            prefix_count: 0,
            rex: 0,
            vex: None,
            vvvv: 0,
            opcode: &[],
            modrm: None,
            reg: 0,
            rm: 0,
            tail: &[],
        };
        let mut at = 0;
        loop {
            match *bytes.get(at)? {
                b @ (0x66 | 0xf2 | 0xf3 | 0xf0) => {
                    *e.prefixes.get_mut(e.prefix_count)? = b;
                    e.prefix_count += 1;
                }
                0x26 | 0x2e | 0x36 | 0x3e | 0x64 | 0x65 | 0x67 => {}
                // A REX that another prefix follows is ignored.
                0x40..=0x4f if is_prefix(*bytes.get(at + 1)?) => {}
                _ => break,
            }
            at += 1;
        }
        let first = *bytes.get(at)?;
        let has_modrm;
        match first {
            0xc5 => {
                let v = *bytes.get(at + 1)?;
                e.vex = Some((1, v & 7));
                e.vvvv = !v >> 3 & 15;
                e.rex = (!v >> 7 & 1) << 2;
                at += 2;
                e.opcode = bytes.get(at..=at)?;
                has_modrm = e.opcode[0] != 0x77;
            }
            0xc4 => {
                let (v, w) = (*bytes.get(at + 1)?, *bytes.get(at + 2)?);
                e.vex = Some((v & 31, w & 0x87));
                e.vvvv = !w >> 3 & 15;
                e.rex = !v >> 5 & 7;
                at += 3;
                e.opcode = bytes.get(at..=at)?;
                has_modrm = true;
            }
            0x62 | 0x8f => return None,
            _ => {
                if first & 0xf0 == 0x40 {
                    e.rex = first;
                    at += 1;
                    // A REX that does not stand right before the opcode is ignored: left to the interpreter.
                    if matches!(*bytes.get(at)?, 0x40..=0x4f | 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3)
                    {
                        return None;
                    }
                }
                let start = at;
                has_modrm = match *bytes.get(at)? {
                    0x0f => match *bytes.get(at + 1)? {
                        0x38 | 0x3a => {
                            at += 2;
                            true
                        }
                        second => {
                            at += 1;
                            two_byte_has_modrm(second)
                        }
                    },
                    opcode => one_byte_has_modrm(opcode),
                };
                e.opcode = bytes.get(start..=at)?;
            }
        }
        at += 1;
        if has_modrm {
            let modrm = *bytes.get(at)?;
            at += 1;
            e.modrm = Some(modrm);
            e.reg = modrm >> 3 & 7 | (e.rex & 4) << 1;
            e.rm = modrm & 7 | (e.rex & 1) << 3;
            let mode = modrm >> 6;
            if mode != 3 {
                let mut wide = mode == 2 || mode == 0 && modrm & 7 == 5;
                if modrm & 7 == 4 {
                    wide |= mode == 0 && *bytes.get(at)? & 7 == 5;
                    at += 1;
                }
                at += if wide { 4 } else { usize::from(mode == 1) };
            }
        } else if let Some(&last) = e.opcode.last() {
            e.rm = last & 7 | (e.rex & 1) << 3;
        }
        e.tail = bytes.get(at..)?;
        Some(e)
    }

    /// Writes the instruction with these register numbers in the reg, rm (or opcode) and vvvv fields.
    pub fn write(&self, asm: &mut Asm, reg: u8, rm: Rm, vvvv: u8) {
        let (rm_number, memory) = match rm {
            Rm::Register(n) => (n, None),
            Rm::Memory(address) => (address.base.unwrap_or(0), Some(address)),
        };
        asm.bytes(&self.prefixes[..self.prefix_count]);
        let index = memory.and_then(|m| m.index).unwrap_or(0);
        let extension = (reg >> 3) << 2 | (index >> 3) << 1 | rm_number >> 3;
        if let Some((map, rest)) = self.vex {
            let high = !(extension << 5) & 0xe0;
            asm.bytes(&[0xc4, high | map, rest | (!vvvv & 15) << 3, self.opcode[0]]);
        } else {
            let rex = self.rex & 8 | extension;
            if rex != 0 || self.rex != 0 {
                asm.code.push(0x40 | rex);
            }
            if self.modrm.is_none() {
                let (last, escape) = self.opcode.split_last().unwrap_or((&0x90, &[]));
                asm.bytes(escape);
                asm.code.push(last & !7 | rm_number & 7);
                asm.bytes(self.tail);
                return;
            }
            asm.bytes(self.opcode);
        }
        if self.modrm.is_some() {
            match memory {
                Some(address) => asm.modrm(reg, address),
                None => asm.code.push(0xc0 | (reg & 7) << 3 | rm_number & 7),
            }
        }
        asm.bytes(self.tail);
    }

    /// Number in the reg field.
    #[must_use]
    pub fn reg(&self) -> u8 {
        self.reg
    }

    /// Number in the rm field of a register operand, or in the opcode.
    #[must_use]
    pub fn rm(&self) -> u8 {
        self.rm
    }

    /// Number in VEX.vvvv.
    #[must_use]
    pub fn vvvv(&self) -> u8 {
        self.vvvv
    }
}
