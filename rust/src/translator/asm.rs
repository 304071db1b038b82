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

/// Up to eight bytes of code, which is what one instruction of ours without an immediate has.
#[derive(Clone, Copy, Default)]
struct Few {
    bytes: u64,
    count: u32,
}

impl Few {
    #[inline(always)]
    fn append(self, value: u64, count: u32) -> Self {
        Self { bytes: self.bytes | value << (self.count * 8), count: self.count + count }
    }

    #[inline(always)]
    fn byte(self, byte: u8) -> Self {
        self.append(u64::from(byte), 1)
    }

    /// REX, where one is needed.
    #[inline(always)]
    fn rex(self, w: bool, reg: u8, address: Address) -> Self {
        let rex = 0x40
            | u8::from(w) << 3
            | (reg >> 3) << 2
            | (address.index.unwrap_or(0) >> 3) << 1
            | address.base.unwrap_or(0) >> 3;
        if rex == 0x40 { self } else { self.byte(rex) }
    }

    /// See [`Asm::modrm`].
    #[inline(always)]
    fn modrm(self, reg: u8, address: Address) -> Self {
        let reg = (reg & 7) << 3;
        let index = address.index.map_or(4, |i| i & 7);
        let disp = u64::from(address.disp as u32);
        let Some(base) = address.base else {
            return self.byte(reg | 4).byte(address.shift << 6 | index << 3 | 5).append(disp, 4);
        };
        let (mode, wide) = match address.disp {
            0 if base & 7 != 5 => (0, 0),
            -128..=127 => (0x40, 1),
            _ => (0x80, 4),
        };
        let few = if address.index.is_some() || base & 7 == 4 {
            self.byte(mode | reg | 4).byte(address.shift << 6 | index << 3 | base & 7)
        } else {
            self.byte(mode | reg | base & 7)
        };
        few.append(disp & !(!0 << (wide * 8)), wide)
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

    /// Appends some bytes at once: most of the time that translation takes goes into writing.
    fn put(&mut self, few: Few) {
        let at = self.code.len();
        self.code.extend_from_slice(&few.bytes.to_le_bytes());
        self.code.truncate(at + few.count as usize);
    }

    /// Nothing that is executed, up to a multiple of `size` bytes.
    pub fn align(&mut self, size: usize) {
        self.code.resize(self.code.len().next_multiple_of(size), 0xcc);
    }

    /// ModRM, SIB and displacement of `address` with `reg` (low three bits) in the reg field.
    pub fn modrm(&mut self, reg: u8, address: Address) {
        self.put(Few::default().modrm(reg, address));
    }

    /// `op reg, [address]` or the like: one opcode byte, 64-bit if `w`.
    pub fn op_mem(&mut self, w: bool, opcode: u8, reg: u8, address: Address) {
        self.put(Few::default().rex(w, reg, address).byte(opcode).modrm(reg, address));
    }

    /// `op reg, rm` between registers.
    pub fn op_reg(&mut self, w: bool, opcode: u8, reg: u8, rm: u8) {
        let few = Few::default().rex(w, reg, Address::base(rm, 0));
        self.put(few.byte(opcode).byte(0xc0 | (reg & 7) << 3 | rm & 7));
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
        let few = Few::default().rex(false, 0, Address::base(reg, 0));
        self.put(few.byte(0xb8 | reg & 7).append(u64::from(value), 4));
    }

    /// LEA reg, [address]; 32-bit result unless `w`.
    pub fn lea(&mut self, w: bool, reg: u8, address: Address) {
        self.op_mem(w, 0x8d, reg, address);
    }

    /// JMP to a place that is not known yet; the offset of its rel32.
    pub fn jmp_later(&mut self) -> usize {
        self.put(Few { bytes: 0xe9, count: 5 });
        self.at() - 4
    }

    /// CALL likewise.
    pub fn call_later(&mut self) -> usize {
        self.put(Few { bytes: 0xe8, count: 5 });
        self.at() - 4
    }

    /// Jcc likewise.
    pub fn jcc_later(&mut self, cc: u8) -> usize {
        self.put(Few { bytes: 0x0f | u64::from(0x80 | cc) << 8, count: 6 });
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
        self.op_mem(false, 0xff, 4, address);
    }
}
