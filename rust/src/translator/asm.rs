//! A few host instructions as bytes. Operands in the state block are `[rsp + disp]`.

/// Host registers by number.
#[allow(missing_docs)]
pub mod reg {
    pub const RAX: u8 = 0;
    pub const RCX: u8 = 1;
    pub const RDX: u8 = 2;
    pub const RBX: u8 = 3;
    pub const RSP: u8 = 4;
    pub const RBP: u8 = 5;
    pub const RSI: u8 = 6;
    pub const RDI: u8 = 7;
    /// Host pointer minus linear address, for the guest's page of stack.
    pub const STACK: u8 = 10;
    /// Scratch.
    pub const S1: u8 = 11;
    /// Scratch: address, then pointer.
    pub const S0: u8 = 14;
    /// The guest's RSP.
    pub const GUEST_RSP: u8 = 15;
}

/// Condition codes of Jcc.
#[allow(missing_docs)]
pub mod cc {
    pub const B: u8 = 2;
    pub const AE: u8 = 3;
    pub const E: u8 = 4;
    pub const NE: u8 = 5;
    pub const BE: u8 = 6;
    pub const L: u8 = 12;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

/// An address: base, index, log2 of the scale, displacement.
#[derive(Clone, Copy, Debug)]
pub struct Address {
    /// Base register.
    pub base: Option<u8>,
    /// Index register.
    pub index: Option<u8>,
    /// log2 of the scale.
    pub shift: u8,
    /// Displacement.
    pub disp: i32,
}

impl Address {
    /// `[base + disp]`.
    #[must_use]
    pub fn base(base: u8, disp: i32) -> Self {
        Self { base: Some(base), index: None, shift: 0, disp }
    }
}

/// Code under construction.
#[derive(Default, Debug)]
pub struct Asm {
    /// Its bytes.
    pub code: Vec<u8>,
}

impl Asm {
    /// Bytes so far.
    #[must_use]
    pub fn at(&self) -> usize {
        self.code.len()
    }

    /// Appends bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.code.extend_from_slice(bytes);
    }

    fn d32(&mut self, v: i32) {
        self.bytes(&v.to_le_bytes());
    }

    /// ModRM, SIB and displacement of `address` with `reg` (low three bits) in the reg field.
    pub fn modrm(&mut self, reg: u8, address: Address) {
        let reg = (reg & 7) << 3;
        let Some(base) = address.base else {
            let index = address.index.map_or(4, |i| i & 7);
            self.bytes(&[reg | 4, address.shift << 6 | index << 3 | 5]);
            self.d32(address.disp);
            return;
        };
        let (mode, wide) = match address.disp {
            0 if base & 7 != 5 => (0, false),
            -128..=127 => (0x40, false),
            _ => (0x80, true),
        };
        if address.index.is_some() || base & 7 == 4 {
            let index = address.index.map_or(4, |i| i & 7);
            self.bytes(&[mode | reg | 4, address.shift << 6 | index << 3 | base & 7]);
        } else {
            self.code.push(mode | reg | base & 7);
        }
        if wide {
            self.d32(address.disp);
        } else if mode == 0x40 {
            self.code.push(address.disp as u8);
        }
    }

    fn rex(&mut self, w: bool, reg: u8, address: Address) {
        let rex = 0x40
            | u8::from(w) << 3
            | (reg >> 3) << 2
            | (address.index.unwrap_or(0) >> 3) << 1
            | address.base.unwrap_or(0) >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
    }

    /// `op reg, [address]` or the like: one opcode byte, 64-bit if `w`.
    pub fn op_mem(&mut self, w: bool, opcode: u8, reg: u8, address: Address) {
        self.rex(w, reg, address);
        self.code.push(opcode);
        self.modrm(reg, address);
    }

    /// `op reg, rm` between registers.
    pub fn op_reg(&mut self, w: bool, opcode: u8, reg: u8, rm: u8) {
        let rex = 0x40 | u8::from(w) << 3 | (reg >> 3) << 2 | rm >> 3;
        if rex != 0x40 {
            self.code.push(rex);
        }
        self.bytes(&[opcode, 0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// MOV reg, [rsp + disp].
    pub fn load(&mut self, reg: u8, disp: i32) {
        self.op_mem(true, 0x8b, reg, Address::base(reg::RSP, disp));
    }

    /// MOV [rsp + disp], reg.
    pub fn store(&mut self, reg: u8, disp: i32) {
        self.op_mem(true, 0x89, reg, Address::base(reg::RSP, disp));
    }

    /// MOV to, from (64 bits).
    pub fn mov(&mut self, to: u8, from: u8) {
        self.op_reg(true, 0x89, from, to);
    }

    /// MOV reg, imm32 (zero-extended).
    pub fn mov_imm(&mut self, reg: u8, value: u32) {
        if reg >= 8 {
            self.code.push(0x41);
        }
        self.code.push(0xb8 | reg & 7);
        self.bytes(&value.to_le_bytes());
    }

    /// LEA reg, [address]; 32-bit result unless `w`.
    pub fn lea(&mut self, w: bool, reg: u8, address: Address) {
        self.op_mem(w, 0x8d, reg, address);
    }

    /// JMP to a place that is not known yet; the offset of its rel32.
    pub fn jmp_later(&mut self) -> usize {
        self.code.push(0xe9);
        self.d32(0);
        self.at() - 4
    }

    /// CALL likewise.
    pub fn call_later(&mut self) -> usize {
        self.code.push(0xe8);
        self.d32(0);
        self.at() - 4
    }

    /// Jcc likewise.
    pub fn jcc_later(&mut self, cc: u8) -> usize {
        self.bytes(&[0x0f, 0x80 | cc]);
        self.d32(0);
        self.at() - 4
    }

    /// The branch whose rel32 is at `at` goes to `target` (offset in this code).
    pub fn bind(&mut self, at: usize, target: usize) {
        let relative = target as i64 - (at as i64 + 4);
        self.code[at..at + 4].copy_from_slice(&(relative as i32).to_le_bytes());
    }

    /// The branch whose rel32 is at `at` goes here.
    pub fn bind_here(&mut self, at: usize) {
        self.bind(at, self.at());
    }

    /// JMP [rsp + disp].
    pub fn jmp_mem(&mut self, address: Address) {
        self.rex(false, 0, address);
        self.code.push(0xff);
        self.modrm(4, address);
    }
}
