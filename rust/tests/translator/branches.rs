//! Branches that do not look their target up: it holds for a page, an address space and a privilege, and for no other.

use silicon::state::gpr;

use crate::guest::{FINE, Guest, Outcome};
use crate::stress::{CODE, DATA, STACK, TABLES, alike, both, calls_the_system, pieces};

#[test]
fn a_page_that_is_called_directly_moves() {
    // top: xchg [rbx], rax (the entry of the page that is called); invlpg [rdi]; call +0x1000; dec rcx; jnz over;
    // mov ecx, 100; xchg [rbx], rax; over: jmp top. It moves all the time, and stays for one round now and then.
    let mut code = vec![0; 0x3000];
    code[..11].copy_from_slice(&[0x48, 0x87, 0x03, 0x0f, 0x01, 0x3f, 0xe8, 0xf5, 0x0f, 0, 0]);
    code[11..16].copy_from_slice(&[0x48, 0xff, 0xc9, 0x75, 8]);
    code[16..24].copy_from_slice(&[0xb9, 100, 0, 0, 0, 0x48, 0x87, 0x03]);
    code[24..26].copy_from_slice(&[0xeb, 0xe6]);
    code[0x1000..0x1004].copy_from_slice(&[0x48, 0xff, 0xc6, 0xc3]); // inc rsi; ret
    code[0x2000..0x2005].copy_from_slice(&[0x48, 0x83, 0xc6, 9, 0xc3]); // add rsi, 9; ret
    let mut guests = both(&code);
    for guest in &mut guests {
        let s = &mut *guest.cpu.state;
        s.gpr[gpr::RBX] = TABLES + 0x3000 + 8;
        s.gpr[gpr::RAX] = (CODE + 0x2000) | 0x67;
        (s.gpr[gpr::RDI], s.gpr[gpr::RCX]) = (CODE + 0x1000, 100);
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 1000);
}

#[test]
fn what_a_branch_passes_over_does_not_count() {
    // top: push rax; mov rbx, [rdi]; test al, 5; jnz over; add [rdi+8], rbx; add rcx, 3; over: pop rdx; inc rax;
    // mov [rdi], rcx; test al, 1; jnz top; call next; next: pop rsi; jmp top
    let code = [
        0x50, 0x48, 0x8b, 0x1f, 0xa8, 5, 0x75, 8, 0x48, 0x01, 0x5f, 8, 0x48, 0x83, 0xc1, 3, 0x5a, 0x48, 0xff, 0xc0,
        0x48, 0x89, 0x0f, 0xa8, 1, 0x75, 0xe5, 0xe8, 0, 0, 0, 0, 0x5e, 0xeb, 0xdd,
    ];
    let mut guests = both(&code);
    for guest in &mut guests {
        // In the way of a page's end now and then: what is checked together lies in one page or not.
        guest.cpu.state.gpr[gpr::RDI] = DATA;
    }
    alike(&mut guests, pieces(), |guest, n| guest.cpu.state.gpr[gpr::RDI] = DATA + 0xff0 + n % 3 * 8);
    let data = |guest: &Guest| [0xff0, 0xff8, 0x1000, 0x1008].map(|at| guest.cpu.memory.read::<u64>(DATA + at));
    assert_eq!(data(&guests[0]), data(&guests[1]));
    assert!(guests[0].cpu.state.gpr[gpr::RCX] > 1000);
}

#[test]
fn a_page_moves_before_the_return_to_it() {
    // top: call +0x1000; inc rsi (or add rsi, 9, in the page that takes its place); jmp top.
    // There: xchg [rbx], rax (the entry of the page of the caller); invlpg [rdi]; ret.
    let mut code = vec![0; 0x3000];
    code[..10].copy_from_slice(&[0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0xff, 0xc6, 0xeb, 0xf6]);
    code[0x1000..0x1007].copy_from_slice(&[0x48, 0x87, 0x03, 0x0f, 0x01, 0x3f, 0xc3]);
    code[0x2000..0x200b].copy_from_slice(&[0xe8, 0xfb, 0x0f, 0, 0, 0x48, 0x83, 0xc6, 9, 0xeb, 0xf5]);
    let mut guests = both(&code);
    for guest in &mut guests {
        let s = &mut *guest.cpu.state;
        s.gpr[gpr::RBX] = TABLES + 0x3000;
        s.gpr[gpr::RAX] = (CODE + 0x2000) | 0x67;
        s.gpr[gpr::RDI] = CODE;
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 1000);
}

/// User: lea rsp, [rsp-8]; ret. Kernel: call leaf; cli; sysretq. Leaf: ret. The user returns to where the kernel's call did.
#[test]
fn a_user_returns_to_no_kernel_code() {
    let mut code = vec![0x48, 0x8d, 0x64, 0x24, 0xf8, 0xc3];
    code.resize(64, 0x90);
    code.extend([0xe8, 7, 0, 0, 0, 0xfa, 0x48, 0x0f, 0x07, 0x90, 0x90, 0x90, 0xc3]);
    let mut guests = both(&code);
    let kernel = guests[0].cpu.state.seg;
    for n in 0..3 {
        let outcomes = guests.each_mut().map(|guest| {
            guest.cpu.state.seg = kernel;
            guest.cpu.state.gpr[gpr::RSP] = STACK;
            calls_the_system(guest);
            guest.run(40)
        });
        assert!(matches!(outcomes[0], Outcome::Fault { vector: 13, .. }), "{outcomes:?}");
        assert_eq!(outcomes[0], outcomes[1], "round {n}");
        assert_eq!(guests[0].cpu.state.retired, guests[1].cpu.state.retired, "round {n}");
    }
}

#[test]
fn code_at_two_addresses_calls_what_lies_beside_it() {
    // top: call +0x1000; xchg rax, rbx; inc rcx; test cl, 0x70; jz top; jmp rax. The same page lies at another address,
    // where the next one is another.
    let mut code = vec![0; 0x3000];
    code[..5].copy_from_slice(&[0xe8, 0xfb, 0x0f, 0, 0]);
    code[5..17].copy_from_slice(&[0x48, 0x93, 0x48, 0xff, 0xc1, 0xf6, 0xc1, 0x70, 0x74, 0xf1, 0xff, 0xe0]);
    code[0x1000..0x1004].copy_from_slice(&[0x48, 0xff, 0xc6, 0xc3]); // inc rsi; ret
    code[0x2000..0x2005].copy_from_slice(&[0x48, 0x83, 0xc6, 9, 0xc3]); // add rsi, 9; ret
    let other = CODE + 0x8_0000;
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.map(other, CODE, 7);
        guest.map(other + 0x1000, CODE + 0x2000, 7);
        (guest.cpu.state.gpr[gpr::RAX], guest.cpu.state.gpr[gpr::RBX]) = (CODE, other);
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 1000);
}

/// User: jmp rax. Kernel: call rdx; sysretq. What it calls: inc rsi; ret. An address that is not canonical is not that of
/// the kernel's code, whatever it differs by.
#[test]
fn a_user_reaches_no_kernel_code_by_odd_addresses() {
    let mut code = vec![0xff, 0xe0];
    code.resize(64, 0x90);
    code.extend([0xff, 0xd2, 0x48, 0x0f, 0x07]);
    code.resize(128, 0x90);
    code.extend([0x48, 0xff, 0xc6, 0xc3]);
    let mut guests = both(&code);
    let kernel = guests[0].cpu.state.seg;
    for odd in 1..0x80_u64 {
        let outcomes = guests.each_mut().map(|guest| {
            let s = &mut *guest.cpu.state;
            (s.gpr[gpr::RAX], s.gpr[gpr::RDX]) = ((CODE + 128) ^ odd << 48, CODE + 128);
            s.seg = kernel;
            calls_the_system(guest);
            guest.run(40)
        });
        assert!(matches!(outcomes[0], Outcome::Fault { vector: 13, .. }), "{outcomes:?}");
        assert_eq!(outcomes[0], outcomes[1], "bits {odd:x}");
        assert_eq!(guests[0].cpu.state.gpr[gpr::RSI], guests[1].cpu.state.gpr[gpr::RSI], "bits {odd:x}");
    }
}

#[test]
fn calls_that_come_back_to_other_code() {
    // top: call rdx; jmp top. In the page at rdi: call r8; add rsi, imm8; ret. At r8, in this page:
    // xchg [rbx], rax (the entry of the page at rdi); invlpg [rdi]; ret
    let mut code = vec![0xff, 0xd2, 0xeb, 0xfc];
    code.resize(0x40, 0x90);
    code.extend([0x48, 0x87, 0x03, 0x0f, 0x01, 0x3f, 0xc3]);
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.load(DATA + 0x800, &[0x41, 0xff, 0xd0, 0x48, 0x83, 0xc6, 1, 0xc3]);
        guest.load(DATA + 0x1800, &[0x41, 0xff, 0xd0, 0x48, 0x83, 0xc6, 9, 0xc3]);
        let s = &mut *guest.cpu.state;
        s.gpr[gpr::RBX] = TABLES + 0x3000 + 8 * ((DATA - FINE) >> 12);
        s.gpr[gpr::RAX] = (DATA + 0x1000) | 0x67;
        s.gpr[gpr::RDI] = DATA;
        s.gpr[gpr::RDX] = DATA + 0x800;
        s.gpr[8] = CODE + 0x40;
    }
    alike(&mut guests, pieces(), |_, _| {});
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 1000);
}

#[test]
fn calls_whose_return_address_is_changed() {
    // top: call rdx; add rsi, 1; add rcx, 1; jmp top. There, in another page: inc rax; mov rbx, rax; and ebx, 4;
    // add [rsp], rbx; ret
    let code = [0xff, 0xd2, 0x48, 0x83, 0xc6, 1, 0x48, 0x83, 0xc1, 1, 0xeb, 0xf4];
    let mut guests = both(&code);
    for guest in &mut guests {
        let callee = [0x48, 0xff, 0xc0, 0x48, 0x89, 0xc3, 0x83, 0xe3, 4, 0x48, 0x01, 0x1c, 0x24, 0xc3];
        guest.load(DATA, &callee);
        guest.cpu.state.gpr[gpr::RDX] = DATA;
    }
    alike(&mut guests, pieces(), |_, _| {});
    let [sometimes, always] = [gpr::RSI, gpr::RCX].map(|n| guests[0].cpu.state.gpr[n]);
    assert!(sometimes > 300 && always > sometimes + 300);
}

#[test]
fn fragments_of_one_block_may_differ_in_length() {
    // top: push rax; push rcx; push rdx; inc rbx; cmp rbx, 8; jb over; add rsi, 1 (three times);
    // over: pop rdx; pop rcx; pop rax; jmp top. The branch is taken at first, so that the fragment ends there. Later the
    // stack crosses a page, and what was decoded is forgotten: the fragment for that has all of the block.
    let mut code = vec![0x50, 0x51, 0x52, 0x48, 0xff, 0xc3, 0x48, 0x83, 0xfb, 8, 0x72, 12];
    code.extend([0x48, 0x83, 0xc6, 1].repeat(3));
    code.extend([0x5a, 0x59, 0x58, 0xeb, 0xe3]);
    let mut guests = both(&code);
    for guest in &mut guests {
        guest.cpu.state.gpr[gpr::RSP] += 0x800;
    }
    guests[1].cpu.translator.as_mut().expect("a translator").warm = 3;
    alike(&mut guests, (0..400u64).map(|n| 1 + n % 23), |guest, n| {
        if n == 200 {
            guest.cpu.state.gpr[gpr::RSP] -= 0x800 - 8;
            guest.cpu.blocks.clear();
        }
    });
    assert!(guests[0].cpu.state.gpr[gpr::RSI] > 100);
}
