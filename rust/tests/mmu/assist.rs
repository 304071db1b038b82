//! Decode assist: what MMIO and tracked-write exits leave for L0, replay of its results, the permit.

use crate::machine::*;
use silicon::stop::{Exec, Stop};

/// Linear 0x1000 is RAM, 0x2000 MMIO at guest-physical 0xfee0_0000, 0x3000 a tracked page (readable only).
fn machine() -> Machine {
    let mut m = Machine::long();
    m.ept_identity(7);
    m.map(0x1000, 0x5000 | P | W | A | D, 1);
    m.map(0x2000, 0xfee0_0000 | P | W | A | D, 1);
    m.map(0x3000, 0x6000 | P | W | A | D, 1);
    m.ept_map(0x6000, 0x6000 | 0x30 | 1, 1);
    m.refresh();
    m
}

#[track_caller]
fn assist<T: std::fmt::Debug>(m: &Machine, result: Exec<T>) -> [u64; 4] {
    assert_eq!(result.err(), Some(Stop::Exit));
    let s = &m.cpu.state;
    [s.assist_kind, s.assist_address, s.assist_width, s.assist_data]
}

/// L0 has done the access and enters again.
fn done(m: &mut Machine, result: u64) {
    m.cpu.state.assist_done = 1;
    m.cpu.state.assist_result = result;
    m.cpu.replay_begin();
}

#[test]
fn reads_and_writes_tell_everything() {
    let mut m = machine();
    let r = m.cpu.read::<u16>(0x2080);
    assert_eq!(assist(&m, r), [3, 0xfee0_0080, 2, 0]);
    done(&mut m, 0x1_2345);
    assert_eq!(m.cpu.read::<u16>(0x2080), Ok(0x2345));
    m.cpu.replay_end();
    let r = m.cpu.write(0x2300, 0xdead_beefu32);
    assert_eq!(assist(&m, r), [4, 0xfee0_0300, 4, 0xdead_beef]);
    done(&mut m, 0);
    assert_eq!(m.cpu.write(0x2300, 0xdead_beefu32), Ok(()));
    m.cpu.replay_end();
    let r = m.cpu.write(0x2300, 1u32);
    assert_eq!(assist(&m, r)[0], 4, "nothing of the last instruction is left");
}

#[test]
fn an_instruction_with_several_accesses_exits_once_for_each() {
    let mut m = machine();
    // MOVS from device to device.
    let movs = |m: &mut Machine| m.cpu.read::<u32>(0x2000).and_then(|v| m.cpu.write(0x2010, v));
    let r = movs(&mut m);
    assert_eq!(assist(&m, r), [3, 0xfee0_0000, 4, 0]);
    done(&mut m, 77);
    let r = movs(&mut m);
    assert_eq!(assist(&m, r), [4, 0xfee0_0010, 4, 77]);
    done(&mut m, 0);
    assert_eq!(movs(&mut m), Ok(()));
    // ADD to a device register.
    m.cpu.replay_end();
    let add = |m: &mut Machine| m.cpu.update::<u32>(0x2020, true, |v| Some(v + 5));
    let r = add(&mut m);
    assert_eq!(assist(&m, r), [3, 0xfee0_0020, 4, 0]);
    done(&mut m, 10);
    let r = add(&mut m);
    assert_eq!(assist(&m, r), [4, 0xfee0_0020, 4, 15]);
    done(&mut m, 0);
    assert_eq!(add(&mut m), Ok(10));
}

#[test]
fn a_forgotten_replay_starts_over() {
    let mut m = machine();
    let r = m.cpu.read::<u8>(0x2000);
    assert_eq!(assist(&m, r)[0], 3);
    m.cpu.state.assist_done = 0;
    m.cpu.replay_begin();
    let r = m.cpu.read::<u8>(0x2000);
    assert_eq!(assist(&m, r)[0], 3);
}

#[test]
fn wide_and_crossing_accesses_come_in_pieces() {
    let mut m = machine();
    let r = m.cpu.read::<u128>(0x2000);
    assert_eq!(assist(&m, r), [3, 0xfee0_0000, 8, 0]);
    done(&mut m, 1);
    let r = m.cpu.read::<u128>(0x2000);
    assert_eq!(assist(&m, r), [3, 0xfee0_0008, 8, 0]);
    done(&mut m, 2);
    assert_eq!(m.cpu.read::<u128>(0x2000), Ok(1 | 2 << 64));
    m.cpu.replay_end();
    // RAM then device: the device's part comes first, so that RAM is untouched until the end.
    m.poke(0x5ff8, 0);
    let add = |m: &mut Machine| m.cpu.update::<u32>(0x1ffe, false, |v| Some(v.wrapping_add(0x0001_0001)));
    let r = add(&mut m);
    assert_eq!(assist(&m, r), [3, 0xfee0_0000, 2, 0]);
    done(&mut m, 0x20);
    let r = add(&mut m);
    assert_eq!(assist(&m, r), [4, 0xfee0_0000, 2, 0x21]);
    assert_eq!(m.peek(0x5ff8), 0);
    done(&mut m, 0);
    assert_eq!(add(&mut m), Ok(0x20_0000));
    assert_eq!(m.peek(0x5ff8), 1 << 48);
}

#[test]
fn tracked_writes_exit_before_and_are_done_once_when_permitted() {
    let mut m = machine();
    m.poke(0x6000, 0x10);
    assert_eq!(m.read(0x3000), Ok(0x10));
    let r = m.write(0x3000, 0x99);
    assert_eq!(assist(&m, r), [5, 0x6000, 8, 0x99]);
    assert_eq!(m.cpu.exit.qualification, 2 | 1 << 3 | 1 << 7 | 1 << 8);
    assert_eq!(m.peek(0x6000), 0x10);
    m.cpu.state.assist_done = 2;
    m.cpu.replay_begin();
    assert!(m.cpu.replaying());
    assert_eq!(m.write(0x3000, 0x99), Ok(()));
    m.cpu.replay_end();
    assert_eq!(m.peek(0x6000), 0x99);
    assert!(m.write(0x3000, 1).is_err(), "one shot");
    // A locked one: the exit knows the data, the permit performs it atomically.
    let xadd = |m: &mut Machine| m.cpu.update::<u64>(0x3000, true, |v| Some(v + 1));
    let r = xadd(&mut m);
    assert_eq!(assist(&m, r), [5, 0x6000, 8, 0x9a]);
    m.cpu.state.assist_done = 2;
    m.cpu.replay_begin();
    assert_eq!(xadd(&mut m), Ok(0x99));
    assert_eq!(m.peek(0x6000), 0x9a);
    m.cpu.replay_end();
    // CMPXCHG16B.
    let wide = |m: &mut Machine| m.cpu.update128(0x3000, |v| Some(v << 64));
    let r = wide(&mut m);
    assert_eq!(assist(&m, r)[..2], [5, 0x6000]);
    m.cpu.state.assist_done = 2;
    m.cpu.replay_begin();
    assert_eq!(wide(&mut m), Ok(0x9a));
    assert_eq!((m.peek(0x6000), m.peek(0x6008)), (0, 0x9a));
}

#[test]
fn l0_may_do_a_tracked_write_itself() {
    let mut m = machine();
    let r = m.write(0x3000, 0x99);
    assert_eq!(assist(&m, r)[0], 5);
    done(&mut m, 0);
    assert_eq!(m.write(0x3000, 0x99), Ok(()));
    assert_eq!(m.peek(0x6000), 0, "left to L0");
}

#[test]
fn accessed_flags_of_a_tracked_table_take_a_permit_too() {
    let mut m = machine();
    let entry = m.map(0x4000, 0x5000 | P | W, 1);
    let table = entry & !0xfff;
    m.ept_map(table, table | 0x30 | 1, 1);
    m.cpu.invalidate(silicon::mmu::Invalidation::Everything);
    let r = m.write(0x4000, 1);
    assert_eq!(assist(&m, r), [5, entry, 8, 0]);
    m.cpu.state.assist_done = 2;
    m.cpu.replay_begin();
    assert_eq!(m.write(0x4000, 1), Ok(()));
    assert_eq!(m.peek(entry) & (A | D), A | D);
}

#[test]
fn fetches_offer_no_assist() {
    let mut m = machine();
    m.cpu.state.assist_kind = 3;
    let r = m.cpu.fetch(0x2000);
    assert_eq!(assist(&m, r)[0], 0);
}

#[test]
fn too_many_accesses_stop_the_run_instead_of_looping() {
    let mut m = machine();
    let most = m.cpu.state.replay.len() as u64;
    // One instruction with `most` accesses of a page, and one more.
    let access = |m: &mut Machine| {
        let mut page = vec![0; 8 * most as usize];
        m.cpu.read_bytes(0x2000, &mut page).and_then(|()| m.cpu.read::<u64>(0x2000))
    };
    for i in 0..most {
        let r = access(&mut m);
        assert_eq!(assist(&m, r)[1], 0xfee0_0000 + 8 * i);
        done(&mut m, i);
    }
    assert_eq!(access(&mut m), Err(Stop::Missing));
}
