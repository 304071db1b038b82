//! What silicon takes of the host: memory, plain and executable, a thread that has memory provided before it is used, and
//! time. It knows nothing of guests.

mod ahead;
pub mod code_memory;
mod mapping;
pub mod time;

pub(crate) use ahead::{Ahead, Base, Window};
pub(crate) use mapping::{HUGE, Mapping};

/// A thread beside the processor's has a core for itself.
pub(crate) fn has_spare_core() -> bool {
    std::thread::available_parallelism().is_ok_and(|cores| cores.get() > 1)
}
