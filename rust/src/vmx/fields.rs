//! Every VMCS field that silicon has: its name, SDM encoding (appendix B), and the slot that holds it.
//!
//! A field is one 64-bit slot whatever its architectural width; `index_of` finds it from a VMREAD or VMWRITE
//! operand. The order is the layout: areas and groups are contiguous, so that entry and exit copy runs.
//! The Python constants are generated from this table. It does not say which fields a model offers.

/// Slots before the first field.
pub mod header {
    /// Revision identifier in bits 30:0, shadow-VMCS indicator in bit 31, VMX-abort indicator in bits 63:32.
    pub const REVISION: usize = 0;
    /// Launch state: 0 clear, 1 launched.
    pub const LAUNCH_STATE: usize = 1;
    /// One bit per [`super::Group`] that a shadowed VMWRITE touched. L0 clears it.
    pub const WRITTEN: usize = 2;
    /// Slots 3 to 7 are free for L0's own notes; silicon neither reads nor writes them.
    pub const FIRST_FREE: usize = 3;
    /// Slot of the first field.
    pub const FIRST_FIELD: usize = 8;
}

/// Areas of a VMCS (SDM 25.3). Each is one run of slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Area {
    Guest,
    Host,
    Control,
    Exit,
}

/// One field.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name, as in the generated Python constants.
    pub name: &'static str,
    /// Slot in the VMCS region.
    pub slot: u16,
    /// Encoding of the full access (SDM appendix B).
    pub encoding: u16,
    /// Area.
    pub area: Area,
    /// Group, for the written-mask.
    pub group: Group,
}

/// Width of a field, from its encoding (SDM table 25-21).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs)]
pub enum Width {
    W16,
    W64,
    W32,
    Natural,
}

impl Field {
    /// Architectural width.
    #[must_use]
    pub const fn width(&self) -> Width {
        match self.encoding >> 13 & 3 {
            0 => Width::W16,
            1 => Width::W64,
            2 => Width::W32,
            _ => Width::Natural,
        }
    }

    /// Bits that a write keeps.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        match self.width() {
            Width::W16 => 0xffff,
            Width::W32 => 0xffff_ffff,
            _ => !0,
        }
    }
}

macro_rules! fields {
    ($($area:ident { $($group:ident { $($name:ident = $encoding:literal,)+ })+ })+) => {
        /// Groups of fields: what the written-mask tells apart.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum Group { $($($group,)+)+ }

        /// The groups, in order of their written-mask bit, by name.
        pub const GROUPS: &[(Group, &str)] = &[$($((Group::$group, stringify!($group)),)+)+];

        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        #[repr(usize)]
        enum Index { $($($($name,)+)+)+ }

        /// Slot number of each field.
        #[allow(missing_docs)]
        pub mod slot {
            use super::{Index, header::FIRST_FIELD};
            $($($(pub const $name: usize = FIRST_FIELD + Index::$name as usize;)+)+)+
        }

        /// The table, in slot order.
        pub const FIELDS: &[Field] = &[$($($(Field {
            name: stringify!($name),
            slot: slot::$name as u16,
            encoding: $encoding,
            area: Area::$area,
            group: Group::$group,
        },)+)+)+];
    };
}

fields! {
    Guest {
        GuestExecution {
            GUEST_RIP = 0x681e,
            GUEST_RSP = 0x681c,
            GUEST_RFLAGS = 0x6820,
            GUEST_INTERRUPTIBILITY = 0x4824,
            GUEST_ACTIVITY = 0x4826,
            GUEST_PENDING_DEBUG = 0x6822,
        }
        GuestControl {
            GUEST_CR0 = 0x6800,
            GUEST_CR3 = 0x6802,
            GUEST_CR4 = 0x6804,
            GUEST_EFER = 0x2806,
            GUEST_PDPTE0 = 0x280a,
            GUEST_PDPTE1 = 0x280c,
            GUEST_PDPTE2 = 0x280e,
            GUEST_PDPTE3 = 0x2810,
        }
        GuestSegments {
            GUEST_ES_SELECTOR = 0x0800,
            GUEST_ES_BASE = 0x6806,
            GUEST_ES_LIMIT = 0x4800,
            GUEST_ES_ACCESS = 0x4814,
            GUEST_CS_SELECTOR = 0x0802,
            GUEST_CS_BASE = 0x6808,
            GUEST_CS_LIMIT = 0x4802,
            GUEST_CS_ACCESS = 0x4816,
            GUEST_SS_SELECTOR = 0x0804,
            GUEST_SS_BASE = 0x680a,
            GUEST_SS_LIMIT = 0x4804,
            GUEST_SS_ACCESS = 0x4818,
            GUEST_DS_SELECTOR = 0x0806,
            GUEST_DS_BASE = 0x680c,
            GUEST_DS_LIMIT = 0x4806,
            GUEST_DS_ACCESS = 0x481a,
            GUEST_FS_SELECTOR = 0x0808,
            GUEST_FS_BASE = 0x680e,
            GUEST_FS_LIMIT = 0x4808,
            GUEST_FS_ACCESS = 0x481c,
            GUEST_GS_SELECTOR = 0x080a,
            GUEST_GS_BASE = 0x6810,
            GUEST_GS_LIMIT = 0x480a,
            GUEST_GS_ACCESS = 0x481e,
            GUEST_LDTR_SELECTOR = 0x080c,
            GUEST_LDTR_BASE = 0x6812,
            GUEST_LDTR_LIMIT = 0x480c,
            GUEST_LDTR_ACCESS = 0x4820,
            GUEST_TR_SELECTOR = 0x080e,
            GUEST_TR_BASE = 0x6814,
            GUEST_TR_LIMIT = 0x480e,
            GUEST_TR_ACCESS = 0x4822,
            GUEST_GDTR_BASE = 0x6816,
            GUEST_GDTR_LIMIT = 0x4810,
            GUEST_IDTR_BASE = 0x6818,
            GUEST_IDTR_LIMIT = 0x4812,
        }
        GuestOther {
            GUEST_DR7 = 0x681a,
            GUEST_DEBUGCTL = 0x2802,
            GUEST_SYSENTER_CS = 0x482a,
            GUEST_SYSENTER_ESP = 0x6824,
            GUEST_SYSENTER_EIP = 0x6826,
            GUEST_PAT = 0x2804,
            GUEST_SMBASE = 0x4828,
            GUEST_VMCS_LINK_POINTER = 0x2800,
            GUEST_PREEMPTION_TIMER = 0x482e,
            GUEST_INTERRUPT_STATUS = 0x0810,
        }
    }
    Host {
        HostState {
            HOST_CR0 = 0x6c00,
            HOST_CR3 = 0x6c02,
            HOST_CR4 = 0x6c04,
            HOST_ES_SELECTOR = 0x0c00,
            HOST_CS_SELECTOR = 0x0c02,
            HOST_SS_SELECTOR = 0x0c04,
            HOST_DS_SELECTOR = 0x0c06,
            HOST_FS_SELECTOR = 0x0c08,
            HOST_GS_SELECTOR = 0x0c0a,
            HOST_TR_SELECTOR = 0x0c0c,
            HOST_FS_BASE = 0x6c06,
            HOST_GS_BASE = 0x6c08,
            HOST_TR_BASE = 0x6c0a,
            HOST_GDTR_BASE = 0x6c0c,
            HOST_IDTR_BASE = 0x6c0e,
            HOST_SYSENTER_CS = 0x4c00,
            HOST_SYSENTER_ESP = 0x6c10,
            HOST_SYSENTER_EIP = 0x6c12,
            HOST_PAT = 0x2c00,
            HOST_EFER = 0x2c02,
            HOST_RSP = 0x6c14,
            HOST_RIP = 0x6c16,
        }
    }
    Control {
        Controls {
            PIN_CONTROLS = 0x4000,
            PRIMARY_CONTROLS = 0x4002,
            SECONDARY_CONTROLS = 0x401e,
            EXIT_CONTROLS = 0x400c,
            ENTRY_CONTROLS = 0x4012,
            EXCEPTION_BITMAP = 0x4004,
            PF_ERROR_MASK = 0x4006,
            PF_ERROR_MATCH = 0x4008,
            IO_BITMAP_A = 0x2000,
            IO_BITMAP_B = 0x2002,
            MSR_BITMAP = 0x2004,
            EXIT_MSR_STORE_COUNT = 0x400e,
            EXIT_MSR_STORE_ADDRESS = 0x2006,
            EXIT_MSR_LOAD_COUNT = 0x4010,
            EXIT_MSR_LOAD_ADDRESS = 0x2008,
            ENTRY_MSR_LOAD_COUNT = 0x4014,
            ENTRY_MSR_LOAD_ADDRESS = 0x200a,
            EXECUTIVE_VMCS_POINTER = 0x200c,
            VIRTUAL_APIC_ADDRESS = 0x2012,
            APIC_ACCESS_ADDRESS = 0x2014,
            EPT_POINTER = 0x201a,
            VPID = 0x0000,
            POSTED_INTERRUPT_VECTOR = 0x0002,
            POSTED_INTERRUPT_DESCRIPTOR = 0x2016,
            EOI_EXIT_BITMAP0 = 0x201c,
            EOI_EXIT_BITMAP1 = 0x201e,
            EOI_EXIT_BITMAP2 = 0x2020,
            EOI_EXIT_BITMAP3 = 0x2022,
            VMREAD_BITMAP = 0x2026,
            VMWRITE_BITMAP = 0x2028,
            XSS_EXITING_BITMAP = 0x202c,
            PLE_GAP = 0x4020,
            PLE_WINDOW = 0x4022,
            CR3_TARGET_COUNT = 0x400a,
            CR3_TARGET0 = 0x6008,
            CR3_TARGET1 = 0x600a,
            CR3_TARGET2 = 0x600c,
            CR3_TARGET3 = 0x600e,
        }
        ControlMasks {
            CR0_MASK = 0x6000,
            CR4_MASK = 0x6002,
            CR0_READ_SHADOW = 0x6004,
            CR4_READ_SHADOW = 0x6006,
        }
        ControlTime {
            TSC_OFFSET = 0x2010,
            TSC_MULTIPLIER = 0x2032,
        }
        ControlTpr {
            TPR_THRESHOLD = 0x401c,
        }
        ControlEvent {
            ENTRY_INTERRUPTION_INFO = 0x4016,
            ENTRY_ERROR_CODE = 0x4018,
            ENTRY_INSTRUCTION_LENGTH = 0x401a,
        }
    }
    Exit {
        ExitInformation {
            EXIT_REASON = 0x4402,
            EXIT_QUALIFICATION = 0x6400,
            GUEST_PHYSICAL_ADDRESS = 0x2400,
            GUEST_LINEAR_ADDRESS = 0x640a,
            EXIT_INTERRUPTION_INFO = 0x4404,
            EXIT_INTERRUPTION_ERROR = 0x4406,
            IDT_VECTORING_INFO = 0x4408,
            IDT_VECTORING_ERROR = 0x440a,
            EXIT_INSTRUCTION_LENGTH = 0x440c,
            EXIT_INSTRUCTION_INFO = 0x440e,
            VM_INSTRUCTION_ERROR = 0x4400,
            IO_RCX = 0x6402,
            IO_RSI = 0x6404,
            IO_RDI = 0x6406,
            IO_RIP = 0x6408,
        }
    }
}

/// First slot and one past the last slot of an area.
#[must_use]
pub const fn area_range(area: Area) -> (usize, usize) {
    let mut first = usize::MAX;
    let mut end = 0;
    let mut i = 0;
    while i < FIELDS.len() {
        if FIELDS[i].area as u8 == area as u8 {
            if first == usize::MAX {
                first = FIELDS[i].slot as usize;
            }
            end = FIELDS[i].slot as usize + 1;
        }
        i += 1;
    }
    (first, end)
}

/// One past the last slot in use.
pub const END: usize = header::FIRST_FIELD + FIELDS.len();

/// Highest index that VMREAD and VMWRITE take, in bits 9:1: IA32_VMX_VMCS_ENUM (SDM appendix A.9).
pub const VMCS_ENUM: u64 = {
    let (mut highest, mut i) = (0, 0);
    while i < FIELDS.len() {
        let index = FIELDS[i].encoding & 0x3fe;
        if index > highest {
            highest = index;
        }
        i += 1;
    }
    highest as u64
};

/// Field number (index into [`FIELDS`]) plus 1 by compressed encoding: width, type, six bits of index.
static BY_ENCODING: [u8; 1024] = {
    let mut table = [0; 1024];
    let mut i = 0;
    while i < FIELDS.len() {
        table[compress(FIELDS[i].encoding)] = i as u8 + 1;
        i += 1;
    }
    table
};

const fn compress(encoding: u16) -> usize {
    (encoding >> 13 & 3) as usize * 256 + (encoding >> 10 & 3) as usize * 64 + (encoding >> 1 & 63) as usize
}

/// The field of a VMREAD or VMWRITE operand, and whether it names the high half of a 64-bit field.
#[inline]
#[must_use]
pub fn lookup(encoding: u64) -> Option<(&'static Field, bool)> {
    // Bits 12 and 63:15 are reserved; index bits 9:7 are zero in every field there is.
    if encoding & !0x6c7f != 0 {
        return None;
    }
    let encoding = encoding as u16;
    let field = FIELDS.get((BY_ENCODING[compress(encoding)] as usize).checked_sub(1)?)?;
    let high = encoding & 1 != 0;
    (!high || matches!(field.width(), Width::W64)).then_some((field, high))
}

/// For translated code, by encoding of a full access without its lowest bit: the offset of the field in its region, and in
/// bits 31:16 by how much its value is shifted up and down again for its width; 0: no field.
pub static READS: [u32; 1 << 14] = {
    let mut table = [0; 1 << 14];
    let mut i = 0;
    while i < FIELDS.len() {
        let field = &FIELDS[i];
        table[field.encoding as usize >> 1] = field.slot as u32 * 8 + (field.mask().leading_zeros() << 16);
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_encoding_finds_its_field() {
        for field in FIELDS {
            let (found, high) = lookup(u64::from(field.encoding)).unwrap();
            assert_eq!((found.name, high), (field.name, false));
            assert_eq!(lookup(u64::from(field.encoding) | 1).is_some(), field.width() == Width::W64, "{}", field.name);
        }
    }

    #[test]
    fn what_is_no_encoding_finds_nothing() {
        for encoding in [0x0010, 0x1000, 0x8000, 0x1_4000, 0x6880, u64::MAX] {
            assert!(lookup(encoding).is_none(), "{encoding:#x}");
        }
    }

    #[test]
    fn encodings_agree_with_areas() {
        for field in FIELDS {
            let expected = match field.encoding >> 10 & 3 {
                0 => Area::Control,
                1 => Area::Exit,
                2 => Area::Guest,
                _ => Area::Host,
            };
            assert_eq!(field.area, expected, "{}", field.name);
        }
    }

    #[test]
    fn areas_follow_one_another_and_fit() {
        let mut at = header::FIRST_FIELD;
        for area in [Area::Guest, Area::Host, Area::Control, Area::Exit] {
            let (first, end) = area_range(area);
            assert_eq!(first, at);
            at = end;
        }
        assert_eq!(at, END);
        assert!(END <= 512 && FIELDS.len() < 255 && GROUPS.len() <= 64);
    }
}
