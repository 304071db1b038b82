//! What lives in the TLBs and what each operation drops (SDM 4.10, 29.4.3).

use silicon::mmu::{Invalidation, Lost};
use silicon::state::cr;

use crate::machine::*;

/// Two pages of data: which one a linear address shows tells whether its translation was cached.
const OLD: u64 = 0x5000;
const NEW: u64 = 0x6000;

/// Long mode with PCIDs; OLD holds 1, NEW holds 2.
fn machine() -> Machine {
    let mut m = Machine::long();
    m.cpu.state.cr4 |= cr::CR4_PCIDE;
    m.poke(OLD, 1);
    m.poke(NEW, 2);
    m.refresh();
    m
}

/// Caches a translation of `linear` to OLD and changes the entry to NEW.
fn cached(m: &mut Machine, linear: u64, flags: u64) {
    m.map(linear, OLD | P | W | flags, 1);
    assert_eq!(m.read(linear), Ok(1));
    m.map(linear, NEW | P | W | flags, 1);
    assert_eq!(m.read(linear), Ok(1), "still cached");
}

/// MOV to CR3: same tables, PCID `pcid`.
fn mov_cr3(m: &mut Machine, pcid: u64, no_flush: bool) {
    let old = m.cpu.state.cr3;
    m.cpu.state.cr3 = old & !0xfff | pcid;
    m.cpu.mmu_cr_written(3, old, no_flush);
}

#[test]
fn invlpg_drops_one_page() {
    let mut m = machine();
    cached(&mut m, 0x1000, 0);
    cached(&mut m, 0x2000, 0);
    m.cpu.invlpg(0x1abc);
    assert_eq!((m.read(0x1000), m.read(0x2000)), (Ok(2), Ok(1)));
}

#[test]
fn invlpg_drops_a_large_page_as_a_whole() {
    let mut m = machine();
    m.map(0x20_0000, P | W | PS, 2);
    assert_eq!((m.read(0x20_0000 + OLD), m.read(0x20_0000 + NEW)), (Ok(1), Ok(2)));
    m.map(0x20_0000, 0x40_0000 | P | W | PS, 2);
    assert_eq!((m.read(0x20_0000 + OLD), m.read(0x20_0000 + NEW)), (Ok(1), Ok(2)));
    m.cpu.invlpg(0x3f_f000);
    assert_eq!((m.read(0x20_0000 + OLD), m.read(0x20_0000 + NEW)), (Ok(0), Ok(0)));
}

#[test]
fn mov_cr3_flushes_its_pcid_but_for_globals() {
    let mut m = machine();
    cached(&mut m, 0x1000, 0);
    cached(&mut m, 0x2000, G);
    mov_cr3(&mut m, 0, true);
    assert_eq!(m.read(0x1000), Ok(1), "no-flush");
    mov_cr3(&mut m, 0, false);
    assert_eq!((m.read(0x1000), m.read(0x2000)), (Ok(2), Ok(1)));
}

#[test]
fn pcids_keep_their_translations() {
    let mut m = machine();
    cached(&mut m, 0x1000, 0);
    mov_cr3(&mut m, 5, true);
    assert_eq!(m.read(0x1000), Ok(2), "another PCID");
    mov_cr3(&mut m, 5, false);
    mov_cr3(&mut m, 0, true);
    assert_eq!(m.read(0x1000), Ok(1), "flushing PCID 5 leaves PCID 0 alone");
    m.cpu.invpcid(1, 0, 0).unwrap();
    assert_eq!(m.read(0x1000), Ok(2));
}

#[test]
fn invlpg_reaches_global_translations_of_all_pcids() {
    let mut m = machine();
    cached(&mut m, 0x1000, G);
    mov_cr3(&mut m, 7, true);
    m.cpu.invlpg(0x1000);
    mov_cr3(&mut m, 0, true);
    assert_eq!(m.read(0x1000), Ok(2));
}

#[test]
fn invpcid_types() {
    for (kind, local, global) in [(0, 2, 2), (1, 2, 1), (2, 2, 2), (3, 2, 1)] {
        let mut m = machine();
        cached(&mut m, 0x1000, 0);
        cached(&mut m, 0x2000, G);
        m.cpu.invpcid(kind, 0, 0x1000).unwrap();
        assert_eq!(m.read(0x1000), Ok(local), "type {kind}");
        if kind != 0 {
            assert_eq!(m.read(0x2000), Ok(global), "type {kind}, global");
        }
    }
    let mut m = machine();
    for (kind, pcid, linear) in [(4, 0, 0), (0, 0x1000, 0), (1, 1 << 63, 0), (0, 0, 1 << 47), (3, 0x1000, 0)] {
        assert!(m.cpu.invpcid(kind, pcid, linear).is_err(), "type {kind}");
        assert_eq!((m.cpu.fault.vector, m.cpu.fault.error), (13, Some(0)));
    }
    m.cpu.state.cr4 &= !cr::CR4_PCIDE;
    assert!(m.cpu.invpcid(1, 3, 0).is_err(), "PCID without CR4.PCIDE");
    assert!(m.cpu.invpcid(2, 3, 0).is_ok(), "which type 2 does not look at");
}

#[test]
fn control_registers_flush_globals_too() {
    let mut m = machine();
    cached(&mut m, 0x1000, G);
    let old = m.cpu.state.cr4;
    m.cpu.state.cr4 ^= cr::CR4_PGE;
    m.cpu.mmu_cr_written(4, old, false);
    m.cpu.state.cr4 = old;
    m.cpu.mmu_cr_written(4, old ^ cr::CR4_PGE, false);
    assert_eq!(m.read(0x1000), Ok(2));
    cached(&mut m, 0x2000, G);
    let old = m.cpu.state.cr0;
    m.cpu.state.cr0 &= !cr::CR0_PG;
    m.cpu.mmu_cr_written(0, old, false);
    m.cpu.state.cr0 = old;
    m.cpu.mmu_cr_written(0, old & !cr::CR0_PG, false);
    assert_eq!(m.read(0x2000), Ok(2));
}

#[test]
fn write_protection_by_cr0_needs_no_flush() {
    let mut m = machine();
    m.map(0x1000, OLD | P | A | D, 1);
    m.cpu.state.cr0 &= !cr::CR0_WP;
    m.refresh();
    assert!(m.write(0x1000, 1).is_ok());
    m.cpu.state.cr0 |= cr::CR0_WP;
    m.refresh();
    assert!(m.write(0x1000, 1).is_err());
}

#[test]
fn vpids_are_apart() {
    let mut m = machine();
    m.cpu.ctl.vpid = 1;
    m.cpu.mmu_enter();
    cached(&mut m, 0x1000, G);
    m.cpu.ctl.vpid = 2;
    m.cpu.mmu_enter();
    assert_eq!(m.read(0x1000), Ok(2));
    m.cpu.invpcid(2, 0, 0).unwrap();
    m.cpu.invalidate(Invalidation::Vpid { vpid: 2 });
    m.cpu.ctl.vpid = 1;
    m.cpu.mmu_enter();
    assert_eq!(m.read(0x1000), Ok(1), "VM entry keeps the VPID's translations");
    m.cpu.invalidate(Invalidation::VpidRetainingGlobals { vpid: 1 });
    assert_eq!(m.read(0x1000), Ok(1));
    m.cpu.invalidate(Invalidation::Address { vpid: 1, linear: 0x1000 });
    assert_eq!(m.read(0x1000), Ok(2));
    cached(&mut m, 0x2000, 0);
    m.cpu.invalidate(Invalidation::AllVpids);
    assert_eq!(m.read(0x2000), Ok(2));
}

#[test]
fn vm_entry_flushes_vpid_0() {
    let mut m = machine();
    m.cpu.mmu_enter();
    cached(&mut m, 0x1000, G);
    m.cpu.mmu_enter();
    assert_eq!(m.read(0x1000), Ok(2));
}

#[test]
fn invept_by_pointer() {
    let mut m = machine();
    m.cpu.ctl.vpid = 1;
    m.ept_identity(7);
    m.map(0x1000, 0x9000 | P | W, 1);
    m.ept_map(0x9000, OLD | 0x37, 1);
    let first = m.cpu.ctl.ept_pointer;
    assert_eq!(m.read(0x1000), Ok(1));
    // A second EPT pointer with the same tables below it.
    let second = first + 0x40_000;
    m.cpu.memory.copy(second & !0xfff, first & !0xfff, 0x1000);
    m.ept_map(0x9000, NEW | 0x37, 1);
    m.cpu.ctl.ept_pointer = second;
    m.refresh();
    assert_eq!(m.read(0x1000), Ok(2), "mappings are tagged with the EPT pointer");
    m.cpu.ctl.ept_pointer = first;
    m.refresh();
    m.cpu.invalidate(Invalidation::Ept { eptp: Some(second) });
    m.cpu.invalidate(Invalidation::Vpid { vpid: 2 });
    assert_eq!(m.read(0x1000), Ok(1));
    m.cpu.invalidate(Invalidation::Vpid { vpid: 1 });
    assert_eq!(m.read(0x1000), Ok(1), "INVVPID leaves guest-physical mappings");
    m.cpu.invalidate(Invalidation::Ept { eptp: Some(first) });
    assert_eq!(m.read(0x1000), Ok(2));
    m.ept_map(0x9000, OLD | 0x37, 1);
    assert_eq!(m.read(0x1000), Ok(2));
    m.cpu.invalidate(Invalidation::Ept { eptp: None });
    assert_eq!(m.read(0x1000), Ok(1));
}

#[test]
fn more_address_spaces_than_are_kept() {
    let mut m = machine();
    for round in 0..2u64 {
        for pcid in 0..100 {
            mov_cr3(&mut m, pcid, true);
            m.map(0x1000, if pcid % 2 == 0 { OLD } else { NEW } | P | W, 1);
            m.cpu.invlpg(0x1000);
            assert_eq!(m.read(0x1000), Ok(1 + pcid % 2), "round {round}, PCID {pcid}");
        }
    }
}

/// Which stamps of translations given out `f` leaves as they are: users', supervisors'.
fn stay(m: &mut Machine, f: impl FnOnce(&mut Machine)) -> (bool, bool) {
    let before = m.cpu.translation_stamps();
    f(m);
    let after = m.cpu.translation_stamps();
    (before.user == after.user, before.supervisor == after.supervisor)
}

#[test]
fn what_was_given_out_survives_where_it_is_global() {
    let mut m = machine();
    m.map(0x1000, OLD | P | W | G, 1);
    m.map(0x2000, OLD | P | W, 1);
    m.read(0x1000).unwrap();
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 1, true)), (false, true), "another PCID");
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 2, false)), (false, true), "its other translations are dropped");
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 2, true)), (true, true), "nothing changes");
    assert_eq!(stay(&mut m, |m| m.cpu.invpcid(1, 7, 0).unwrap()), (true, true), "a PCID that is not the current one");
    let others = Invalidation::Vpid { vpid: 9 };
    assert_eq!(stay(&mut m, |m| m.cpu.invalidate(others)), (true, true), "another VPID");
    assert_eq!(stay(&mut m, |m| m.cpu.invalidate(Invalidation::Ept { eptp: None })), (true, true), "no EPT here");
    m.read(0x2000).unwrap();
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 1, true)), (false, false), "one is not global");
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 2, true)), (false, true), "PCID 1 has none");
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 2, false)), (false, false), "but PCID 2 has");
    assert_eq!(stay(&mut m, |m| mov_cr3(m, 1, true)), (false, true), "until they are dropped");
    assert_eq!(stay(&mut m, |m| m.cpu.invpcid(2, 0, 0).unwrap()), (false, false), "all contexts, globals too");
    let other_rights = |m: &mut Machine| {
        m.cpu.state.cr0 ^= cr::CR0_WP;
        m.cpu.mmu_cr_written(0, m.cpu.state.cr0 ^ cr::CR0_WP, false);
    };
    assert_eq!(stay(&mut m, other_rights), (false, false));
}

#[test]
fn what_was_given_out_survives_the_loss_of_far_addresses() {
    let mut m = machine();
    m.map(0x1000, OLD | P | W | G, 1);
    m.read(0x1000).unwrap();
    assert_eq!(stay(&mut m, |m| m.cpu.invlpg(1 << 40)), (true, true));
    assert_eq!(stay(&mut m, |m| m.cpu.invlpg(0x3000)), (true, false));
    assert_eq!(stay(&mut m, |m| m.cpu.invlpg(0x3000)), (true, false), "the translation is cached still");
}

#[test]
fn few_pages_that_are_not_global_are_not_given_out_for_long() {
    const UPPER: u64 = 0xffff_8000_0000_0000;
    let mut m = machine();
    for n in 0..100 {
        m.map(UPPER + n * 0x1000, OLD | P | W | G | NX, 1);
    }
    m.map(UPPER + 0x10_0000, OLD | P | W | NX, 1);
    (0..100).for_each(|n| assert!(m.read(UPPER + n * 0x1000).is_ok()));
    let other = |m: &mut Machine| {
        let upper = m.cpu.translation_stamps().supervisor[1];
        mov_cr3(m, 1, true);
        mov_cr3(m, 2, true);
        m.cpu.translation_stamps().supervisor[1] == upper
    };
    assert!(other(&mut m));
    assert!(m.read(UPPER + 0x10_0000).is_ok());
    assert!(other(&mut m), "translated code does not remember it");
    m.cpu.invlpg(UPPER + 0x10_0000);
    for n in 100..200 {
        m.map(UPPER + n * 0x1000, OLD | P | W | NX, 1);
    }
    (100..200).for_each(|n| assert!(m.read(UPPER + n * 0x1000).is_ok()));
    assert!(!other(&mut m), "they are too many");
}

#[test]
fn the_loss_of_a_half_leaves_the_other() {
    const UPPER: u64 = 0xffff_8000_0000_1000;
    let mut m = machine();
    m.map(0x1000, OLD | P | W, 1);
    m.map(UPPER, OLD | P | W | G, 1);
    assert_eq!((m.read(0x1000), m.read(UPPER)), (Ok(1), Ok(1)));
    let before = m.cpu.translation_stamps().supervisor;
    mov_cr3(&mut m, 1, true);
    let after = m.cpu.translation_stamps().supervisor;
    assert_eq!(
        (before[0] == after[0], before[1] == after[1]),
        (false, true),
        "what is not global lies in the lower half"
    );
    m.cpu.invlpg(UPPER + 0x1000);
    let last = m.cpu.translation_stamps().supervisor;
    assert_eq!((after[0] == last[0], after[1] == last[1]), (true, false));
}

#[test]
fn single_pages_are_told_as_lost() {
    let mut m = machine();
    m.map(0x1000, OLD | P | W, 1);
    m.map(0x20_0000, P | W | PS, 2);
    assert!(m.read(0x1000).is_ok() && m.read(0x20_1000).is_ok());
    let lost = |m: &mut Machine, f: &dyn Fn(&mut Machine)| {
        let before = m.cpu.translation_stamps();
        f(m);
        let same = m.cpu.translation_stamps().user == before.user;
        (same, m.cpu.mmu.lost_since(before.lost).map(Iterator::collect::<Vec<_>>))
    };
    let invlpg = |linear: u64| move |m: &mut Machine| m.cpu.invlpg(linear);
    assert_eq!(lost(&mut m, &invlpg(0x1abc)), (true, Some(vec![Lost::User { page: 0x1000 }])));
    assert_eq!(lost(&mut m, &invlpg(0x20_2000)), (false, Some(vec![])), "more than one page");
    let host = m.cpu.memory.base() as u64 + OLD;
    let protect = |m: &mut Machine| m.cpu.invalidate(Invalidation::WriteProtect { page: Some(OLD) });
    assert_eq!(lost(&mut m, &protect), (true, Some(vec![Lost::Writes { host }])));
    let often = |m: &mut Machine| (0..17).for_each(|_| m.cpu.invlpg(0x1000));
    assert_eq!(lost(&mut m, &often), (true, None));
    assert!(!lost(&mut m, &|m| m.cpu.invalidate(Invalidation::WriteProtect { page: None })).0);
}

#[test]
fn what_was_given_out_survives_while_spaces_under_another_ept_pointer_run() {
    let mut m = machine();
    m.cpu.ctl.vpid = 1;
    m.map(0x1000, OLD | P | W, 1);
    m.ept_identity(7);
    let first = m.cpu.ctl.ept_pointer;
    assert!(m.read(0x1000).is_ok());
    let run = |m: &mut Machine, eptp: u64| {
        m.cpu.ctl.ept_pointer = eptp;
        m.cpu.mmu_enter();
        m.cpu.translation_stamps()
    };
    // The same tables under another memory type are another pointer.
    let second = first ^ 6;
    let before = [run(&mut m, first), run(&mut m, second)];
    assert_ne!(before[0].world, before[1].world);
    assert_eq!([run(&mut m, first), run(&mut m, second)], before);
    // What reaches the one that does not run shows when it runs again.
    m.cpu.invalidate(Invalidation::Vpid { vpid: 2 });
    assert_eq!([run(&mut m, first), run(&mut m, second)], before);
    m.cpu.invalidate(Invalidation::Vpid { vpid: 1 });
    assert_ne!(run(&mut m, first).user, before[0].user);
    let before = [run(&mut m, first), run(&mut m, second)];
    m.cpu.invalidate(Invalidation::WriteProtect { page: Some(OLD) });
    assert_eq!(run(&mut m, first).lost, before[0].lost + 1);
    // Four are kept; a fifth takes the place of the one that did not run for longest.
    let others = [0x100, 0x200].map(|bits| run(&mut m, first ^ bits).world);
    let [first_stamps, _] = [run(&mut m, first), run(&mut m, second)];
    let four = [before[0].world, before[1].world, others[0], others[1]];
    assert!((0..4).all(|world| four.contains(&world)), "{four:?}");
    let fifth = run(&mut m, first ^ 0x400);
    assert_eq!(fifth.world, others[0]);
    // Who comes back to another place takes no code along that was made for the first.
    let epochs = |m: &mut Machine| m.cpu.code_epochs(|_| ());
    run(&mut m, first);
    let known = epochs(&mut m);
    assert_eq!(run(&mut m, first), first_stamps);
    assert_eq!(epochs(&mut m), known);
    for bits in [0x100, 0x200, 0x400, 0x800] {
        run(&mut m, first ^ bits);
    }
    assert_ne!(run(&mut m, first).world, first_stamps.world);
    assert_ne!(epochs(&mut m), known);
}
