//! Port I/O: which accesses exit (SDM 26.1.3), what the exit reports, and the access itself when none does.
//!
//! The decode assist (port, width, data) lies in the state, never in the VMCS. I/O permission of TSS and
//! IOPL comes before this and is the executor's.

use super::bits::primary;
use super::controls::NONE;
use super::information::string_segment;
use super::reasons::reason;
use crate::cpu::{Bits, Cpu};
use crate::decode::Insn;
use crate::state::{gpr, seg};
use crate::stop::Exec;

impl Cpu {
    /// IN, OUT, INS or OUTS of `width` bytes at `port`. When it exits, the assist slots tell L0 what to do;
    /// for OUTS the caller has put the data into `state.assist_data` before. An access that L0 has already
    /// done (a replay) does not exit again.
    ///
    /// # Errors
    /// The exit.
    #[allow(clippy::too_many_arguments)]
    pub fn check_port(
        &mut self,
        port: u16,
        width: u8,
        input: bool,
        string: bool,
        rep: bool,
        imm: bool,
        insn: &Insn,
    ) -> Exec {
        if self.replay_cursor < self.state.replay_count || !self.port_exits(port, width) {
            return Ok(());
        }
        let qualification = u64::from(width.wrapping_sub(1) & 7)
            | u64::from(input) << 3
            | u64::from(string) << 4
            | u64::from(rep) << 5
            | u64::from(imm) << 6
            | u64::from(port) << 16;
        let stop = if string {
            self.exit_insn_info(reason::IO, qualification, insn)
        } else {
            self.exit_insn(reason::IO, qualification)
        };
        if string {
            let segment = string_segment(insn, input);
            let register = if input { gpr::RDI } else { gpr::RSI };
            let offset = self.state.gpr[register] & insn.address_mask;
            self.exit.guest_linear = match self.mode.bits {
                Bits::B64 if segment < seg::FS => offset,
                Bits::B64 => offset.wrapping_add(self.state.seg[segment].base),
                _ => offset.wrapping_add(self.state.seg[segment].base) & 0xffff_ffff,
            };
        } else if !input {
            self.state.assist_data = self.state.gpr[gpr::RAX] & mask(width);
        }
        self.state.assist_kind = if input { 1 } else { 2 };
        self.state.assist_address = u64::from(port);
        self.state.assist_width = u64::from(width);
        if input {
            self.state.assist_data = 0;
        }
        Err(stop)
    }

    /// Unconditional I/O exiting counts only without bitmaps; an access that wraps round the port space
    /// exits; else any bit of the ports it touches.
    fn port_exits(&self, port: u16, width: u8) -> bool {
        if self.ctl.io_bitmap_a == NONE {
            return self.ctl.primary & primary::UNCONDITIONAL_IO != 0;
        }
        for n in 0..u16::from(width) {
            let Some(p) = port.checked_add(n) else { return true };
            let (bitmap, bit) = if p < 0x8000 { (self.ctl.io_bitmap_a, p) } else { (self.ctl.io_bitmap_b, p & 0x7fff) };
            if self.host_byte(bitmap.wrapping_add(u64::from(bit / 8))) >> (bit % 8) & 1 != 0 {
                return true;
            }
        }
        false
    }

    /// The data of an input that did not exit: what L0 read for it, else all ones (no physical device
    /// has ports here).
    #[must_use]
    pub fn port_in(&mut self, _port: u16, width: u8) -> u64 {
        let value = self.take_replay().unwrap_or(!0);
        value & mask(width)
    }

    /// The end of an output that did not exit: L0 has done it, or nobody listens.
    pub fn port_out(&mut self, _port: u16, _width: u8, _value: u64) {
        let _ = self.take_replay();
    }

    /// The next result of an access that this instruction has already made, in order.
    fn take_replay(&mut self) -> Option<u64> {
        if self.replay_cursor >= self.state.replay_count {
            return None;
        }
        let value = self.state.replay.get(self.replay_cursor as usize).copied();
        self.replay_cursor += 1;
        value
    }
}

const fn mask(width: u8) -> u64 {
    match width {
        1 => 0xff,
        2 => 0xffff,
        4 => 0xffff_ffff,
        _ => !0,
    }
}
