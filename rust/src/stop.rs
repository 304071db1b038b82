//! Why an instruction did not complete. The `Result` error of everything that executes.
//!
//! Kept to one byte so that `Result<u64, Stop>` travels in registers; the details lie in
//! [`crate::cpu::Cpu::fault`] and [`crate::cpu::Cpu::exit`].

/// The instruction at `state.rip` did not complete (its architectural effects are undone or never
/// happened, except where the SDM says otherwise, such as a REP iteration that was done).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stop {
    /// An exception is to be delivered: see `Cpu::fault`.
    Fault = 1,
    /// A VM exit is to be taken: see `Cpu::exit`.
    Exit = 2,
    /// Start the instruction again (a REP iteration was cut, or decoded code changed under it).
    Again = 3,
    /// CPUID offers the instruction but silicon lacks it: the run ends with its bytes and address.
    Missing = 4,
}

/// Result of executing something for the guest.
pub type Exec<T = ()> = Result<T, Stop>;

/// Exception vectors (SDM vol. 3, table 6-1).
#[allow(missing_docs)]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
}

/// Interruption types, as in VM-entry and VM-exit interruption information (SDM 25.8.3, 25.9.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum EventKind {
    /// External interrupt.
    External = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception (everything but INT n, INT1, INT3, INTO).
    Hardware = 3,
    /// Software interrupt (INT n).
    Software = 4,
    /// Privileged software exception (INT1).
    Privileged = 5,
    /// Software exception (INT3, INTO).
    SoftwareException = 6,
    /// Other event (pending MTF VM exit).
    Other = 7,
}

/// An event on its way through the IDT.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Vector 0 to 255.
    pub vector: u8,
    /// What kind of event it is.
    pub kind: EventKind,
    /// The error code that is pushed, where the vector has one.
    pub error: Option<u32>,
    /// #PF: the linear address (written to CR2 at delivery). #DB: the DR6 bits (B0..B3, BD, BS).
    pub payload: u64,
    /// For software events: the length of the instruction (return RIP = RIP + length).
    pub length: u8,
}
