//! Segmentation: descriptors, loading segment registers, logical to linear addresses.
//!
//! SDM vol. 3, chapters 3 and 5. CS is loaded by far transfers (`far`), TR and LDTR by `tables`.

use crate::cpu::{Bits, Cpu};
use crate::state::{Segment, seg};
use crate::stop::{Exec, Stop, vector};

/// Bits of [`Segment::access`] (SDM table 25-2).
#[allow(missing_docs)]
pub mod access {
    pub const ACCESSED: u64 = 1 << 0;
    /// Data: writable. Code: readable.
    pub const READ_WRITE: u64 = 1 << 1;
    /// Data: expand-down. Code: conforming.
    pub const DOWN_CONFORMING: u64 = 1 << 2;
    pub const CODE: u64 = 1 << 3;
    /// Code or data, not system.
    pub const S: u64 = 1 << 4;
    pub const PRESENT: u64 = 1 << 7;
    pub const LONG: u64 = 1 << 13;
    /// D/B.
    pub const BIG: u64 = 1 << 14;
    pub const GRANULARITY: u64 = 1 << 15;
    pub const UNUSABLE: u64 = 1 << 16;
}

/// System descriptor types (SDM vol. 3, table 3-2).
#[allow(missing_docs)]
pub mod system_type {
    pub const TSS16: u64 = 1;
    pub const LDT: u64 = 2;
    pub const TSS16_BUSY: u64 = 3;
    pub const CALL16: u64 = 4;
    pub const TASK: u64 = 5;
    pub const INT16: u64 = 6;
    pub const TRAP16: u64 = 7;
    pub const TSS32: u64 = 9;
    pub const TSS32_BUSY: u64 = 11;
    pub const CALL32: u64 = 12;
    pub const INT32: u64 = 14;
    pub const TRAP32: u64 = 15;
}

/// An 8-byte descriptor, with the upper half of a 16-byte one where that was read.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The 8 bytes at the selector's place.
    pub low: u64,
    /// The next 8, for system descriptors in IA-32e mode; else 0.
    pub high: u64,
    /// Linear address of the descriptor.
    pub linear: u64,
}

impl Descriptor {
    /// Base address, 64 bits where the descriptor has them.
    #[must_use]
    pub fn base(self) -> u64 {
        (self.low >> 16 & 0xff_ffff) | (self.low >> 32 & 0xff00_0000) | (self.high << 32)
    }

    /// Byte-granular limit.
    #[must_use]
    pub fn limit(self) -> u64 {
        let raw = (self.low & 0xffff) | (self.low >> 32 & 0xf_0000);
        if self.low >> 55 & 1 != 0 { raw << 12 | 0xfff } else { raw }
    }

    /// Access rights in the VMCS format.
    #[must_use]
    pub fn access(self) -> u64 {
        self.low >> 40 & 0xf0ff
    }

    /// Type 3:0.
    #[must_use]
    pub fn kind(self) -> u64 {
        self.low >> 40 & 15
    }

    /// S: code or data.
    #[must_use]
    pub fn is_code_or_data(self) -> bool {
        self.low >> 44 & 1 != 0
    }

    /// A code segment.
    #[must_use]
    pub fn is_code(self) -> bool {
        self.low >> 43 & 3 == 3
    }

    /// A conforming code segment.
    #[must_use]
    pub fn is_conforming(self) -> bool {
        self.is_code() && self.kind() & access::DOWN_CONFORMING != 0
    }

    /// A writable data segment.
    #[must_use]
    pub fn is_writable(self) -> bool {
        self.is_code_or_data() && !self.is_code() && self.kind() & access::READ_WRITE != 0
    }

    /// A data segment or a readable code segment.
    #[must_use]
    pub fn is_readable(self) -> bool {
        self.is_code_or_data() && (!self.is_code() || self.kind() & access::READ_WRITE != 0)
    }

    /// Descriptor privilege level.
    #[must_use]
    pub fn dpl(self) -> u8 {
        (self.low >> 45 & 3) as u8
    }

    /// Present.
    #[must_use]
    pub fn is_present(self) -> bool {
        self.low >> 47 & 1 != 0
    }

    /// The segment register that `selector` gets from this descriptor, marked accessed.
    #[must_use]
    pub fn segment(self, selector: u16) -> Segment {
        Segment {
            selector: u64::from(selector),
            base: self.base(),
            limit: self.limit(),
            access: self.access() | access::ACCESSED,
        }
    }

    /// Gate: target selector.
    #[must_use]
    pub fn gate_selector(self) -> u16 {
        (self.low >> 16) as u16
    }

    /// Gate: target offset (64 bits where the upper half was read).
    #[must_use]
    pub fn gate_offset(self) -> u64 {
        (self.low & 0xffff) | (self.low >> 32 & 0xffff_0000) | (self.high << 32)
    }
}

/// Whether `address` is canonical for 48-bit linear addresses.
#[inline]
#[must_use]
pub fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// The error code of a selector: index and TI; the delivery of an event adds EXT.
#[must_use]
pub fn selector_error(selector: u16) -> Option<u32> {
    Some(u32::from(selector & 0xfffc))
}

impl Cpu {
    /// #GP with the selector as error code.
    #[cold]
    pub fn gp_selector(&mut self, selector: u16) -> Stop {
        self.raise(vector::GP, selector_error(selector))
    }

    /// The linear address of the descriptor that `selector` names, if all `bytes` of it lie in its table.
    pub(crate) fn descriptor_address(&self, selector: u16, bytes: u64) -> Option<u64> {
        let offset = u64::from(selector & 0xfff8);
        let (base, limit) = if selector & 4 != 0 {
            let ldt = &self.state.seg[seg::LDTR];
            if ldt.access & access::UNUSABLE != 0 {
                return None;
            }
            (ldt.base, ldt.limit)
        } else {
            (self.state.gdtr_base, self.state.gdtr_limit & 0xffff)
        };
        if offset + bytes - 1 > limit {
            return None;
        }
        let linear = base.wrapping_add(offset);
        Some(if self.mode.long { linear } else { linear & 0xffff_ffff })
    }

    /// Reads the descriptor that `selector` names; outside its table is fault `fault` with the selector.
    ///
    /// # Errors
    /// The named fault, or a page fault.
    pub(crate) fn descriptor(&mut self, selector: u16, fault: u8) -> Exec<Descriptor> {
        let Some(linear) = self.descriptor_address(selector, 8) else {
            return Err(self.raise(fault, selector_error(selector)));
        };
        Ok(Descriptor { low: self.read_system::<u64>(linear)?, high: 0, linear })
    }

    /// Sets the accessed bit of a code or data descriptor in its table, atomically, if it is clear.
    ///
    /// # Errors
    /// A page fault.
    pub(crate) fn mark_accessed(&mut self, descriptor: Descriptor) -> Exec {
        if descriptor.kind() & access::ACCESSED == 0 {
            self.update_system::<u8>(descriptor.linear.wrapping_add(5), true, |old| Some(old | 1))?;
        }
        Ok(())
    }

    /// Loads ES, SS, DS, FS or GS as MOV, POP and LxS do (SDM vol. 2, MOV). CS is not loaded this way.
    ///
    /// # Errors
    /// #GP, #NP or #SS with the selector, or a page fault; nothing is changed then.
    pub fn load_segment(&mut self, n: usize, selector: u16) -> Exec {
        if !self.mode.protected {
            self.load_segment_real(n, selector);
            return Ok(());
        }
        let segment = if n == seg::SS { self.stack_segment(selector)? } else { self.data_segment(selector)? };
        self.state.seg[n] = segment;
        if n == seg::SS {
            self.update_mode();
        }
        Ok(())
    }

    /// Real-address and virtual-8086 mode: base = selector * 16; the rest of the register stays (which
    /// is what makes "unreal" mode; SDM vol. 3, 20.1.1).
    pub(crate) fn load_segment_real(&mut self, n: usize, selector: u16) {
        let v8086 = self.mode.v8086;
        let segment = &mut self.state.seg[n];
        segment.selector = u64::from(selector);
        segment.base = u64::from(selector) << 4;
        if v8086 {
            segment.limit = 0xffff;
            segment.access = 0xf3;
        } else if segment.access & access::UNUSABLE != 0 {
            segment.limit = 0xffff;
            segment.access = 0x93;
        }
    }

    /// Checks of loading DS, ES, FS or GS in protected mode.
    fn data_segment(&mut self, selector: u16) -> Exec<Segment> {
        if selector & 0xfffc == 0 {
            return Ok(Segment { selector: u64::from(selector), base: 0, limit: 0, access: access::UNUSABLE });
        }
        let descriptor = self.descriptor(selector, vector::GP)?;
        let rpl = (selector & 3) as u8;
        if !descriptor.is_readable()
            || (!descriptor.is_conforming() && (rpl > descriptor.dpl() || self.cpl() > descriptor.dpl()))
        {
            return Err(self.gp_selector(selector));
        }
        if !descriptor.is_present() {
            return Err(self.raise(vector::NP, selector_error(selector)));
        }
        self.mark_accessed(descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Checks of loading SS at the current privilege level.
    fn stack_segment(&mut self, selector: u16) -> Exec<Segment> {
        let cpl = self.cpl();
        if selector & 0xfffc == 0 {
            if self.mode.bits != Bits::B64 || cpl == 3 || (selector & 3) as u8 != cpl {
                return Err(self.gp0());
            }
            return Ok(null_stack(selector, cpl));
        }
        self.stack_segment_for(selector, cpl, vector::GP)
    }

    /// Checks of loading SS with a selector for privilege level `cpl`; `fault` is #GP or #TS.
    ///
    /// # Errors
    /// `fault` or #SS with the selector, or a page fault.
    pub(crate) fn stack_segment_for(&mut self, selector: u16, cpl: u8, fault: u8) -> Exec<Segment> {
        let descriptor = self.descriptor(selector, fault)?;
        if (selector & 3) as u8 != cpl || !descriptor.is_writable() || descriptor.dpl() != cpl {
            return Err(self.raise(fault, selector_error(selector)));
        }
        if !descriptor.is_present() {
            return Err(self.raise(vector::SS, selector_error(selector)));
        }
        self.mark_accessed(descriptor)?;
        Ok(descriptor.segment(selector))
    }

    /// Logical to linear address of a data access of `size` bytes, with the checks of the mode
    /// (SDM vol. 3, 5.3, 5.5, 3.3.7.1). `offset` is already cut to the address size.
    ///
    /// # Errors
    /// #SS(0) for the stack segment, #GP(0) for the others.
    #[inline]
    pub fn linear(&mut self, n: usize, offset: u64, size: u32, write: bool) -> Exec<u64> {
        let segment = &self.state.seg[n & 7];
        if self.mode.bits == Bits::B64 {
            let linear = if n == seg::FS || n == seg::GS { segment.base.wrapping_add(offset) } else { offset };
            let last = linear.wrapping_add(u64::from(size).saturating_sub(1));
            if canonical(linear) && canonical(last) {
                return Ok(linear);
            }
            return Err(self.segment_fault(n));
        }
        if self.mode.protected && !access_allowed(segment.access, write) || !within(segment, offset, size) {
            return Err(self.segment_fault(n));
        }
        Ok(segment.base.wrapping_add(offset) & 0xffff_ffff)
    }

    /// #SS(0) or #GP(0), by the segment that was used.
    #[cold]
    pub(crate) fn segment_fault(&mut self, n: usize) -> Stop {
        self.raise(if n == seg::SS { vector::SS } else { vector::GP }, Some(0))
    }
}

/// SS as a null selector leaves it in 64-bit mode: unusable, its DPL holding the CPL.
#[must_use]
pub(crate) fn null_stack(selector: u16, cpl: u8) -> Segment {
    Segment { selector: u64::from(selector), base: 0, limit: 0, access: access::UNUSABLE | u64::from(cpl) << 5 }
}

/// Type check of a data access in protected mode.
#[inline]
fn access_allowed(rights: u64, write: bool) -> bool {
    if rights & access::UNUSABLE != 0 {
        false
    } else if rights & access::CODE != 0 {
        !write && rights & access::READ_WRITE != 0
    } else {
        !write || rights & access::READ_WRITE != 0
    }
}

/// Limit check (SDM vol. 3, 5.3). An access that wraps at 4 GiB faults.
#[inline]
pub(crate) fn within(segment: &Segment, offset: u64, size: u32) -> bool {
    let last = offset.wrapping_add(u64::from(size).saturating_sub(1));
    if segment.access & (access::CODE | access::DOWN_CONFORMING) == access::DOWN_CONFORMING
        && segment.access & access::S != 0
    {
        let top = if segment.access & access::BIG != 0 { 0xffff_ffff } else { 0xffff };
        offset > segment.limit && last <= top
    } else {
        last <= segment.limit
    }
}
