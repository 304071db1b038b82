//! What VMCS, CR4 and the clock say of the instructions that translated code executes in line: put into the hot data
//! whenever translated code is entered, so that fragments hold nothing of it. What only a VM entry changes is put there at
//! the entry.

use super::hot::{Refused, Structures};
use crate::clock::Clock;
use crate::cpu::Cpu;
use crate::host::time;
use crate::state::cr;
use crate::vmx::bits::{primary, secondary};
use crate::vmx::fields::slot;

/// "Use TSC scaling" does nothing.
const UNSCALED: u64 = 1 << 48;

impl Cpu {
    /// Fills in [`Structures`]: at VM entry, when the controls are loaded.
    pub fn set_structures(&mut self) {
        let page = |pa: u64| {
            let inside = pa % 4096 == 0 && self.memory.contains(pa, 4096);
            if inside { self.memory.ptr(pa).cast_const() } else { std::ptr::null() }
        };
        let mut structures = Structures { msr_bitmap: page(self.ctl.msr_bitmap), ..Structures::default() };
        if self.ctl.secondary & secondary::VMCS_SHADOWING != 0 {
            let shadow = page(self.vmcs.get(slot::GUEST_VMCS_LINK_POINTER));
            if !shadow.is_null() {
                (structures.vmread_bitmap, structures.shadow) = (page(self.ctl.vmread_bitmap), shadow);
                structures.vmwrite_bitmap = page(self.ctl.vmwrite_bitmap);
            }
        }
        self.state.hot().structures = structures;
    }

    /// Fills in [`Refused`] and the time.
    pub(super) fn set_controls(&mut self) {
        let s = &*self.state;
        let exits = |bit: u32| u64::from(self.ctl.primary & bit);
        let mut time = exits(primary::RDTSC);
        if s.cr4 & cr::CR4_TSD != 0 && self.mode.cpl != 0 || self.ctl.tsc_multiplier != UNSCALED {
            time = 1;
        }
        let scale = match self.clock {
            Clock::Host { origin } => time::scale().map(|scale| (scale, scale.ns.wrapping_sub(origin))),
            Clock::Virtual { .. } => None,
        };
        time |= u64::from(scale.is_none());
        let refused = Refused {
            segment_bases: u64::from(s.cr4 & cr::CR4_FSGSBASE == 0),
            time_stamp: time,
            time_stamp_and_processor: time | u64::from(!self.enabled(secondary::RDTSCP)),
            cr3: exits(primary::CR3_STORE),
            pause: exits(primary::PAUSE),
        };
        let moved = s.tsc_base.wrapping_add(s.tsc_adjust).wrapping_add(self.ctl.tsc_offset);
        let timer = self.timer_deadline;
        let hot = self.state.hot();
        hot.refused = refused;
        if let Some((scale, ns)) = scale {
            hot.time_anchor = scale.tsc.wrapping_neg();
            hot.time_factor = scale.factor;
            hot.time_base = ns.wrapping_add(moved);
            let left = if timer == u64::MAX { i64::MAX } else { timer.wrapping_sub(ns) as i64 };
            hot.time_left = left.wrapping_neg() as u64;
        }
    }
}
