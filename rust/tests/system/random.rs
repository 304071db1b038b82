//! Random system instructions on random descriptors, entered through a VMCS: whatever they do, the guest
//! state of every exit is one that VM entry accepts (SDM vol. 3, 27.3.1), and silicon does not panic.
//!
//! The seed is printed; SILICON_SEED repeats a run, SILICON_CASES makes it longer.

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use silicon::state::{cr, gpr, seg};
use silicon::vmx::checks::{View, check_entry};
use silicon::vmx::entry::Outcome;
use silicon::vmx::fields::slot;
use silicon::vmx::{VmcsPage, reason};

use crate::machine::*;

const EPT: u64 = PAGES + 0x1_0000;
/// The VMCS, in the pool behind RAM.
const VMCS: u64 = RAM;
/// The first bytes of instructions of interest; the rest is random.
const OPCODES: &[&[u8]] = &[
    &[0x0f, 0x00],
    &[0x0f, 0x01],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x02],
    &[0x0f, 0x03],
    &[0x0f, 0x05],
    &[0x0f, 0x06],
    &[0x0f, 0x07],
    &[0x0f, 0x20],
    &[0x0f, 0x21],
    &[0x0f, 0x22],
    &[0x0f, 0x22, 0xc0],
    &[0x0f, 0x22, 0xe0],
    &[0x0f, 0x23],
    &[0x0f, 0x31],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0xa0],
    &[0x0f, 0xa1],
    &[0x0f, 0xa9],
    &[0x0f, 0xae],
    &[0x0f, 0xb2],
    &[0x0f, 0xb4],
    &[0x06],
    &[0x07],
    &[0x17],
    &[0x1f],
    &[0x63],
    &[0x6c],
    &[0x6e],
    &[0x8c],
    &[0x8e],
    &[0x9a],
    &[0x9c],
    &[0x9d],
    &[0xc4],
    &[0xc5],
    &[0xca],
    &[0xcb],
    &[0xcc],
    &[0xcd],
    &[0xce],
    &[0xcf],
    &[0xe4],
    &[0xea],
    &[0xec],
    &[0xef],
    &[0xf1],
    &[0xf4],
    &[0xfa],
    &[0xfb],
    &[0xff, 0x18],
    &[0xff, 0x28],
];
const PREFIXES: &[u8] = &[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0x48, 0x49, 0xf2, 0xf3];

/// A descriptor that has a chance to be used.
fn random_descriptor(rng: &mut StdRng) -> u64 {
    let access = if rng.random_bool(0.9) { 0x80 } else { 0 } | rng.random_range(0..0x80_u64);
    let (base, limit) = if rng.random_bool(0.5) { (0, 0xf_ffff) } else { (rng.random_range(0..0x10000), 0xfff) };
    if rng.random_bool(0.2) {
        return gate(random_selector(rng), rng.random_range(0..0x3_0000), access & !0x10, rng.random_range(0..32));
    }
    descriptor(base, limit, access, rng.random_range(0..16))
}

fn random_selector(rng: &mut StdRng) -> u16 {
    rng.random_range(0..0x12_u16) << 3 | rng.random_range(0..4) | if rng.random_bool(0.1) { 4 } else { 0 }
}

/// A value for a general register.
fn random_word(rng: &mut StdRng) -> u64 {
    match rng.random_range(0..6) {
        0 => u64::from(random_selector(rng)),
        1 => DATA + rng.random_range(0..0x1000),
        2 => CODE + rng.random_range(0..0x100),
        3 => rng.random(),
        4 => 1 << rng.random_range(0..64),
        _ => rng.random_range(0..0x1_0000),
    }
}

/// The frame of an IRET or a far return that leads somewhere.
fn random_frame(m: &mut Machine, rng: &mut StdRng) {
    let wide = m.cpu.state.seg[seg::CS].access >> 13 & 1 != 0;
    let some =
        |rng: &mut StdRng| u64::from([sel::CODE0, sel::CODE3, sel::CODE64, sel::CODE64_3][rng.random_range(0..4)]);
    let flags = if rng.random_bool(0.5) { 2 } else { rng.random_range(0..1 << 22) };
    let stack = u64::from(if rng.random_bool(0.5) { sel::DATA3 } else { random_selector(rng) });
    let code = if rng.random_bool(0.7) { some(rng) } else { u64::from(random_selector(rng)) };
    for (k, word) in [CODE, code, flags, STACK, stack, 0x1000, 0x2000, 0x3000, 0x4000].into_iter().enumerate() {
        let k = k as u64;
        if wide {
            m.write64(STACK + 8 * k, word);
        } else {
            m.write32(STACK + 4 * k, word as u32);
        }
    }
}

/// A machine in one of the modes, with random tables and a VMCS that is ready to enter.
fn prepare(rng: &mut StdRng) -> (Machine, VmcsPage) {
    let mut m = match rng.random_range(0..5) {
        0 => Machine::real(),
        1 => Machine::protected(0),
        2 => Machine::protected(3),
        3 => Machine::long(0),
        _ => Machine::long(3),
    };
    for selector in (sel::A..sel::BEYOND).step_by(8) {
        let value = random_descriptor(rng);
        m.set_descriptor(selector, value);
    }
    if rng.random_bool(0.3) {
        let vector = rng.random_range(0..20);
        let value = random_descriptor(rng);
        m.set_gate(vector, value);
    }
    let s = &mut *m.cpu.state;
    s.cr0 &= !(cr::CR0_NW | cr::CR0_CD);
    s.cr4 |= cr::CR4_VMXE | if rng.random_bool(0.5) { cr::CR4_VME | cr::CR4_PVI | cr::CR4_FSGSBASE } else { 0 };
    s.efer |= cr::EFER_SCE;
    s.star = rng.random();
    s.lstar = CODE;
    s.sysenter_cs = u64::from(random_selector(rng));
    (s.sysenter_eip, s.sysenter_esp) = (CODE, STACK);
    if m.cpu.mode.long && rng.random_bool(0.3) {
        s.seg[seg::CS].access = s.seg[seg::CS].access & !0x2000 | 0x4000; // compatibility mode
    }
    let table = |at: u64, value: u64| m.memory.write(at, value);
    table(EPT, (EPT + 0x1000) | 7);
    table(EPT + 0x1000, (EPT + 0x2000) | 7);
    for k in 0..8 {
        table(EPT + 0x2000 + 8 * k, k << 21 | 0xb7);
    }
    let vmcs = m.cpu.vmcs_at(VMCS).expect("the pool");
    fill(&m, vmcs);
    (m, vmcs)
}

/// Controls, host state, and guest state from the machine's registers.
fn fill(m: &Machine, v: VmcsPage) {
    let vmx = &m.cpu.model.vmx;
    let long = m.cpu.state.efer & cr::EFER_LMA != 0;
    v.set(0, vmx.basic & 0x7fff_ffff);
    v.set(slot::PIN_CONTROLS, u64::from(vmx.pin.ones | 1));
    v.set(slot::PRIMARY_CONTROLS, u64::from(vmx.primary.ones | 1 << 31));
    v.set(slot::SECONDARY_CONTROLS, 1 << 1 | 1 << 7 | 1 << 3 | 1 << 12);
    v.set(slot::EXIT_CONTROLS, u64::from(vmx.exit.ones | 1 << 2 | 1 << 9 | 1 << 18 | 1 << 20));
    v.set(slot::ENTRY_CONTROLS, u64::from(vmx.entry.ones | 1 << 2 | 1 << 14 | 1 << 15 | u32::from(long) << 9));
    v.set(slot::EPT_POINTER, EPT | 3 << 3 | 6);
    v.set(slot::HOST_CR0, cr::CR0_PE | cr::CR0_PG | cr::CR0_NE);
    v.set(slot::HOST_CR4, cr::CR4_PAE | cr::CR4_VMXE);
    v.set(slot::HOST_CS_SELECTOR, 8);
    v.set(slot::HOST_TR_SELECTOR, 8);
    let s = &m.cpu.state;
    v.set(slot::GUEST_RIP, s.rip);
    v.set(slot::GUEST_RSP, s.gpr[gpr::RSP]);
    v.set(slot::GUEST_RFLAGS, s.rflags);
    v.set(slot::GUEST_CR0, s.cr0);
    v.set(slot::GUEST_CR3, s.cr3);
    v.set(slot::GUEST_CR4, s.cr4);
    v.set(slot::GUEST_EFER, s.efer);
    v.set(slot::GUEST_PAT, s.pat);
    v.set(slot::GUEST_DR7, 0x400);
    v.set(slot::GUEST_VMCS_LINK_POINTER, !0);
    for (n, segment) in s.seg.iter().enumerate() {
        let at = slot::GUEST_ES_SELECTOR + 4 * n;
        v.store(at, &[segment.selector, segment.base, segment.limit, segment.access]);
    }
    v.store(slot::GUEST_GDTR_BASE, &[s.gdtr_base, s.gdtr_limit, s.idtr_base, s.idtr_limit]);
}

#[test]
fn every_exit_leaves_a_state_that_can_be_entered() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seed = number("SILICON_SEED").unwrap_or_else(rand::random::<u64>);
    let cases = number("SILICON_CASES").unwrap_or(3000);
    println!("SILICON_SEED={seed}");
    let mut rng = StdRng::seed_from_u64(seed);
    let mut reasons = std::collections::BTreeMap::new();
    for case in 0..cases {
        let (mut m, vmcs) = prepare(&mut rng);
        for step in 0..20 {
            let mut code = [0_u8; 24];
            rng.fill(&mut code);
            let mut at = 0;
            while rng.random_bool(0.3) && at < 3 {
                code[at] = PREFIXES[rng.random_range(0..PREFIXES.len())];
                at += 1;
            }
            let opcode = OPCODES[rng.random_range(0..OPCODES.len())];
            code[at..at + opcode.len()].copy_from_slice(opcode);
            if rng.random_bool(0.3) {
                // A far pointer that leads somewhere.
                let selector = random_selector(&mut rng).to_le_bytes();
                code[at + 3..at + 5].copy_from_slice(&[0, 0]);
                code[at + 5..at + 7].copy_from_slice(&selector);
            }
            for n in 0..16 {
                m.cpu.state.gpr[n] = random_word(&mut rng);
            }
            for k in 0..8 {
                let word = random_word(&mut rng);
                m.write32(STACK + 4 * k, word as u32);
                m.write64(DATA + 8 * k, word);
            }
            if rng.random_bool(0.5) {
                random_frame(&mut m, &mut rng);
            }
            let rip = vmcs.get(slot::GUEST_RIP);
            let place = vmcs.get(slot::GUEST_CS_SELECTOR + 1).wrapping_add(rip);
            if place < RAM - 64 {
                m.write_bytes(place, &code);
            }
            vmcs.set(slot::GUEST_RSP, STACK);
            let before = m.cpu.state.retired;
            let now = m.cpu.clock.now(before);
            let outcome = m.cpu.enter(vmcs, now + 3);
            let memory = std::sync::Arc::clone(&m.memory);
            let read = |pa: u64| memory.read::<u64>(pa);
            let broken = check_entry(&View::new(&vmcs, &m.cpu.model, &read));
            let trouble = |what: &str| {
                panic!("{what} in case {case} step {step}: {code:02x?} {outcome:?} {broken:?}\n{:x?}", *m.cpu.state)
            };
            match outcome {
                Outcome::Exit(number) => {
                    *reasons.entry(number).or_insert(0) += 1;
                    if number & reason::ENTRY_FAILURE != 0 {
                        trouble("the entry failed");
                    }
                    if broken.is_some() {
                        trouble("the exit left a state that cannot be entered");
                    }
                    if m.cpu.state.rflags & 2 == 0 || m.cpu.state.retired > before + 3 {
                        trouble("impossible state");
                    }
                    if number == reason::TRIPLE_FAULT || number == reason::TASK_SWITCH {
                        break;
                    }
                    // The exit's instruction is skipped; at a handler's VMCALL the next code lies there.
                    if number != reason::EXTERNAL_INTERRUPT {
                        let length = vmcs.get(slot::EXIT_INSTRUCTION_LENGTH);
                        let long = vmcs.get(slot::GUEST_CS_ACCESS) >> 13 & 1 != 0;
                        let next = vmcs.get(slot::GUEST_RIP).wrapping_add(length);
                        vmcs.set(slot::GUEST_RIP, if long { next } else { next & 0xffff_ffff });
                        vmcs.set(slot::GUEST_INTERRUPTIBILITY, vmcs.get(slot::GUEST_INTERRUPTIBILITY) & !3);
                    }
                    if vmcs.get(slot::GUEST_ACTIVITY) != 0 {
                        vmcs.set(slot::GUEST_ACTIVITY, 0);
                    }
                }
                Outcome::Missing => trouble("an instruction is missing"),
                Outcome::Invalid(_) | Outcome::Abort(_) => trouble("the VMCS is not valid"),
            }
        }
    }
    println!("{reasons:?}");
    assert!(reasons.len() > 8, "too few kinds of exit: {reasons:?}");
}
