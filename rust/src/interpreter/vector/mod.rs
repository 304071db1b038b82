//! x87, MMX, SSE to SSE4.2, AVX, AVX2, AES, PCLMULQDQ, SHA, FMA and F16C, run by the host's own units.
//!
//! An instruction runs as itself in a generated stub with its memory operand redirected ([`stub`]); what
//! must not run natively is written out beside it. No translation of code: one instruction at a time.

use std::collections::HashMap;

use iced_x86::{Code, Instruction, Mnemonic};

use crate::decode::{Handler, Insn};
use crate::host::code_memory::{CodeMemory, CodeMemoryError};

pub mod features;
mod fpu;
mod gate;
mod masked;
mod moves;
mod native;
pub mod stub;
mod trap;
mod x87;
pub mod xsave;

use stub::{Entry, Scratch, Traits};

/// A stub and what the unit knows of its instruction.
#[derive(Clone, Copy)]
pub struct Stub {
    /// Its code.
    pub entry: Entry,
    /// Its instruction's needs and effects.
    pub traits: Traits,
}

/// Code memory is taken in chunks of this size,
const CHUNK: usize = 1 << 20;
/// and this many chunks at most; then all stubs are dropped and made again as they are needed.
const MAX_CHUNKS: usize = 4;

/// Stubs and their memory.
#[derive(Default)]
pub struct VectorUnit {
    chunks: Vec<CodeMemory>,
    /// Where stubs continue after SIGFPE.
    landing: u64,
    known: HashMap<Instruction, u32>,
    stubs: Vec<Stub>,
    /// Number of `stubs[0]`. Lower numbers were dropped.
    first: u32,
    scratch: Box<Scratch>,
}

impl VectorUnit {
    /// Takes executable memory from the host.
    ///
    /// # Errors
    /// When the host refuses it; the message says what to do.
    pub fn new() -> Result<Self, CodeMemoryError> {
        let mut unit = Self::default();
        unit.grow()?;
        Ok(unit)
    }

    /// Number of stubs in use.
    #[must_use]
    pub fn stub_count(&self) -> usize {
        self.stubs.len()
    }

    fn grow(&mut self) -> Result<(), CodeMemoryError> {
        if self.chunks.len() >= MAX_CHUNKS || self.chunks.is_empty() {
            self.chunks.clear();
            self.known.clear();
            self.first = self.first.wrapping_add(self.stubs.len() as u32).max(1);
            self.stubs.clear();
            let mut chunk = CodeMemory::new(CHUNK)?;
            let landing = chunk.append(&stub::landing(is_x86_feature_detected!("avx")));
            self.landing = landing.map_or(0, |p| p as u64);
            self.chunks.push(chunk);
        } else {
            self.chunks.push(CodeMemory::new(CHUNK)?);
        }
        Ok(())
    }

    /// The stub of `insn`, made at its first execution.
    #[inline]
    fn stub(&mut self, insn: &Insn) -> Option<Stub> {
        let index = insn.stub.get().wrapping_sub(self.first) as usize;
        match self.stubs.get(index) {
            Some(stub) => Some(*stub),
            None => self.make(insn),
        }
    }

    #[cold]
    fn make(&mut self, insn: &Insn) -> Option<Stub> {
        if self.chunks.is_empty() {
            self.grow().ok()?;
        }
        let key = stub::canonical(&insn.iced);
        if let Some(&number) = self.known.get(&key) {
            insn.stub.set(number);
            return self.stubs.get(number.wrapping_sub(self.first) as usize).copied();
        }
        let traits = stub::traits(&insn.iced)?;
        let address = self.chunks.last()?.next() as u64;
        let code = stub::assemble(&insn.iced, &traits, address).ok()?;
        let entry = match self.chunks.last_mut()?.append(&code) {
            Some(entry) => entry,
            None => {
                self.grow().ok()?;
                let address = self.chunks.last()?.next() as u64;
                let code = stub::assemble(&insn.iced, &traits, address).ok()?;
                self.chunks.last_mut()?.append(&code)?
            }
        };
        // SAFETY: `entry` is a complete stub, which follows the ABI of `Entry` and lives as long as the chunk.
        let entry = unsafe { std::mem::transmute::<*const u8, Entry>(entry) };
        let stub = Stub { entry, traits };
        let number = self.first.wrapping_add(self.stubs.len() as u32);
        self.stubs.push(stub);
        self.known.insert(key, number);
        insn.stub.set(number);
        Some(stub)
    }
}

/// The executor of a vector or x87 instruction; `None` when it is not this unit's, or the host lacks it.
#[must_use]
pub fn select(i: &Instruction) -> Option<Handler> {
    let code = i.code();
    if !features::code_offered(code) {
        return None;
    }
    moves::select(i)
        .or_else(|| x87::select(code))
        .or_else(|| xsave::select(code))
        .or_else(|| masked::select(code))
        .or_else(|| native::select(i))
}

/// Instructions that belong to other owners although their CPUID feature is one of this unit's.
fn foreign(code: Code) -> bool {
    matches!(code, Code::Xgetbv | Code::Xsetbv) || code.mnemonic() == Mnemonic::Cmpxchg8b
}
