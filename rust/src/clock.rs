//! The core's clock: 1 GHz, so that one TSC tick is one nanosecond (CPUID 15H says so).

pub use crate::host::time::now as monotonic_ns;

/// Where time comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Clock {
    /// The host's CLOCK_MONOTONIC, in nanoseconds since `origin`.
    Host {
        /// CLOCK_MONOTONIC at time zero of the machine.
        origin: u64,
    },
    /// Retired instructions plus `skipped` (what HLT warped over), one a nanosecond.
    Virtual {
        /// Nanoseconds warped so far.
        skipped: u64,
    },
}

impl Clock {
    /// Nanoseconds now. `retired` is exact: the instructions before the one that asks.
    #[inline]
    #[must_use]
    pub fn now(self, retired: u64) -> u64 {
        match self {
            Self::Host { origin } => monotonic_ns().wrapping_sub(origin),
            Self::Virtual { skipped } => retired.wrapping_add(skipped),
        }
    }
}
