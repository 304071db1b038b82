//! The flat state by name: the slot and the number of slots of each field of [`State`].
//!
//! For Python and for tools; executors use the structure itself.

use std::mem::offset_of;

use crate::state::State;

/// One field of the flat state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateField {
    /// Name of the field.
    pub name: &'static str,
    /// First slot.
    pub slot: usize,
    /// Number of slots.
    pub count: usize,
}

const fn slots_of<T>(_: fn(&State) -> &T) -> usize {
    size_of::<T>() / 8
}

macro_rules! slots {
    ($($name:ident)+) => {
        const OFFSETS: &[usize] = &[$(offset_of!(State, $name) / 8,)+];
        const COUNTS: &[usize] = &[$(slots_of(|s| &s.$name),)+];
        const NAMES: &[&str] = &[$(stringify!($name),)+];
        /// Every field, in slot order.
        pub const STATE_FIELDS: &[StateField] = &{
            let mut table = [StateField { name: "", slot: 0, count: 0 }; NAMES.len()];
            let mut i = 0;
            while i < table.len() {
                table[i] = StateField { name: NAMES[i], slot: OFFSETS[i], count: COUNTS[i] };
                i += 1;
            }
            table
        };
        /// Fails to compile when a field of the state is missing above.
        #[allow(dead_code)]
        fn complete(s: State) {
            let State { $($name: _,)+ } = s;
        }
    };
}

slots! {
    gpr
    zero
    rip
    rflags
    cr0
    cr2
    cr3
    cr4
    cr8
    ymm
    dr
    dr6
    dr7
    seg
    gdtr_base
    gdtr_limit
    idtr_base
    idtr_limit
    xcr0
    efer
    star
    lstar
    cstar
    fmask
    kernel_gs_base
    sysenter_cs
    sysenter_esp
    sysenter_eip
    pat
    tsc_aux
    tsc_adjust
    tsc_base
    apic_base
    misc_enable
    feature_control
    debugctl
    spec_ctrl
    xss
    tsc_deadline
    mtrr_def_type
    mtrr_fixed
    mtrr_var
    st
    fcw
    fsw
    ftw
    fop
    fip
    fdp
    fcs
    fds
    mxcsr
    interruptibility
    activity
    pending_debug
    monitor
    retired
    entry_time
    exit_time
    assist_kind
    assist_address
    assist_width
    assist_data
    assist_done
    assist_result
    replay_count
    replay
}
