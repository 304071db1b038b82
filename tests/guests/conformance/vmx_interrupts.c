/* Interrupts, NMIs, windows, activity states, MSR areas, debug controls (SDM 26 to 28). */
#include "vmx.h"

/* --- interrupts --- */
static void x2apic_off_eoi(void)
{ apic_write(0xb0, 0); }
static volatile u64 taken[256];
static void take(struct frame *f)
{
    taken[f->vector]++;
    x2apic_off_eoi();
}
static void wait_with_interrupts(void)
{
    asm volatile("sti");
    while (!taken[0xf1])
        ;
    asm volatile("cli");
    vmcall();
}
static void halt_with_interrupts(void)
{
    asm volatile("sti; hlt; cli");
    vmcall();
}
static void just_call(void)
{ vmcall(); }
static void nops(void)
{
    asm volatile("nop; nop; nop");
    vmcall();
}
static void loop_forever(void)
{
    for (;;)
        asm volatile("pause");
}
static void sti_nop(void)
{
    asm volatile("sti; nop; nop; cli");
    vmcall();
}
static void timer_in(u32 ticks)
{
    apic_write(0x3e0, 0xb);
    apic_write(0x320, 0xf1);
    apic_write(0x380, ticks);
}

TEST(interrupts)
{
    apic_on();
    vmx_enable();
    handler[0xf1] = take;
    handler[0xf2] = take;
    /* direct delivery */
    taken[0xf1] = 0;
    fresh(wait_with_interrupts);
    controls(PIN, 0, 1);
    timer_in(20000);
    CHECK(enter(), X_VMCALL);
    CHECK(taken[0xf1], 1);
    /* direct delivery in HLT */
    taken[0xf1] = 0;
    fresh(halt_with_interrupts);
    controls(PRI, 0, 1 << 7);
    timer_in(200000);
    CHECK(enter(), X_VMCALL);
    CHECK(taken[0xf1], 1);
    /* entered in HLT state */
    taken[0xf1] = 0;
    fresh(just_call);
    vmwrite(ACTV, 1);
    vmwrite(GFLAGS, 0x202);
    timer_in(200000);
    CHECK(enter(), X_VMCALL);
    CHECK(taken[0xf1], 1);
    /* intercepted without acknowledging */
    taken[0xf1] = 0;
    fresh(loop_forever);
    controls(PIN, 1, 0);
    timer_in(20000);
    CHECK(enter(), X_EXTINT);
    CHECK(vmread(XINFO) >> 31, 0);
    CHECK(taken[0xf1], 0);
    asm volatile("sti; nop; cli");
    CHECK(taken[0xf1], 1);
    /* with */
    taken[0xf1] = 0;
    fresh(loop_forever);
    controls(PIN, 1, 0);
    controls(EXITC, 1 << 15, 0);
    timer_in(20000);
    CHECK(enter(), X_EXTINT);
    CHECK(vmread(XINFO), VALID | 0xf1);
    asm volatile("sti; nop; cli");
    CHECK(taken[0xf1], 0);
    x2apic_off_eoi();
    /* intercepted in HLT, where guest IF is clear */
    fresh(just_call);
    controls(PIN, 1, 0);
    controls(EXITC, 1 << 15, 0);
    vmwrite(ACTV, 1);
    timer_in(100000);
    CHECK(enter(), X_EXTINT);
    CHECK(vmread(XINFO), VALID | 0xf1);
    CHECK(vmread(ACTV), 1);
    x2apic_off_eoi();
    CHECK(vmread(GRIP), (u64)just_call);
    /* pending before the entry: exits before the first instruction, IF in the guest does not matter */
    fresh(just_call);
    controls(PIN, 1, 0);
    apic_send(0xf2);
    CHECK(enter(), X_EXTINT);
    CHECK(vmread(GRIP), (u64)just_call);
    asm volatile("sti; nop; cli");
    /* injected event comes before that exit */
    fresh(just_call);
    controls(PIN, 1, 0);
    set_gate(0xe2, nops, 0, 0);
    vmwrite(GFLAGS, 0x202);
    vmwrite(EINFO, VALID | 0xe2);
    apic_send(0xf2);
    CHECK(enter(), X_EXTINT);
    CHECK(vmread(GRIP), (u64)nops);
    CHECK(vmread(IDTINFO) >> 31, 0);
    CHECK(vmread(GFLAGS) & 0x200, 0);
    CHECK(vmread(EINFO) >> 31, 0);
    asm volatile("sti; nop; cli");
    /* interrupt window */
    fresh(sti_nop);
    controls(PRI, 4, 0);
    CHECK(enter(), X_INTWIN);
    CHECK(vmread(GRIP), (u64)sti_nop + 2);
    CHECK(vmread(INTRB), 0);
    vmwrite(GRIP, (u64)nops);
    vmwrite(GFLAGS, 0x202);
    vmwrite(INTRB, 0);
    CHECK(enter(), X_INTWIN);
    CHECK(vmread(GRIP), (u64)nops);
    vmwrite(INTRB, 1);
    CHECK(enter(), X_INTWIN);
    CHECK(vmread(GRIP), (u64)nops + 1);
    vmwrite(GRIP, (u64)nops);
    vmwrite(INTRB, 2);
    CHECK(enter(), X_INTWIN);
    CHECK(vmread(GRIP), (u64)nops + 1);
    vmwrite(GRIP, (u64)nops);
    vmwrite(ACTV, 1);
    CHECK(enter(), X_INTWIN);
    CHECK(vmread(ACTV), 1);
    CHECK(vmread(GRIP), (u64)nops);
    /* an external interrupt is taken before... the window exit has priority over nothing but follows NMIs */
    fresh(nops);
    controls(PIN, 1, 0);
    controls(PRI, 4, 0);
    vmwrite(GFLAGS, 0x202);
    apic_send(0xf2);
    CHECK(enter(), X_INTWIN);
    controls(PRI, 0, 4);
    CHECK(enter(), X_EXTINT);
    asm volatile("sti; nop; cli");
    vmx_disable();
}

static volatile int nmis;
static void count_nmi(struct frame *f)
{
    (void)f;
    nmis++;
}
static void nmi_self(void)
{
    apic_write(0x310, 0);
    apic_write(0x300, 0x40400);
}
static void send_nmi(void)
{
    nmi_self();
    asm volatile("nop; nop");
    vmcall();
}
static void do_iret(void)
{
    asm volatile("mov %%rsp, %%rax; pushq $0x10; pushq %%rax; pushfq; pushq $8; pushq $1f; iretq; 1: nop; nop" ::
                     : "rax");
    vmcall();
}
TEST(nmi)
{
    apic_on();
    vmx_enable();
    handler[2] = count_nmi;
    nmis = 0;
    nmi_self();
    asm volatile("nop");
    CHECK(nmis, 1);
    fresh(send_nmi);
    CHECK(enter(), X_VMCALL);
    CHECK(nmis, 2);
    fresh(send_nmi);
    controls(PIN, 8, 0);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & ~0x1000ull, VALID | 2 << 8 | 2);
    CHECK(nmis, 2);
    nmi_self();
    asm volatile("nop; nop");
    CHECK(nmis, 2); /* blocked: the exit for an NMI blocks NMIs */
do_iret:
    asm volatile("mov %%rsp, %%rax; pushq $0x10; pushq %%rax; pushfq; pushq $8; pushq $1f; iretq; 1: nop; nop" ::
                     : "rax");
    CHECK(nmis, 3);
    /* HLT state */
    fresh(just_call);
    controls(PIN, 8, 0);
    vmwrite(ACTV, 1);
    nmi_self();
    CHECK(nmis, 4);
    (void)&&do_iret;
    /* NMI injection: blocks NMIs in the guest; virtual NMIs and the window */
    if (controls(PIN, 1 << 5, 0)) {
        fresh(nops);
        controls(PIN, 8 | 1 << 5, 0);
        set_gate(2, nops, 0, 0);
        vmwrite(EINFO, VALID | 2 << 8 | 2);
        CHECK(enter(), X_VMCALL);
        CHECK(vmread(INTRB), 8);
        controls(PRI, 1 << 22, 0);
        guest_is(do_iret);
        int r = enter();
        CHECK(r, X_NMIWIN);
        CHECK(vmread(INTRB), 0);
        guest_is(nops);
        vmwrite(INTRB, 0);
        CHECK(enter(), X_NMIWIN);
        CHECK(vmread(GRIP), (u64)nops);
        vmwrite(INTRB, 2);
        CHECK(enter(), X_NMIWIN);
        CHECK(vmread(GRIP), (u64)nops + 1);
        vmwrite(GRIP, (u64)nops);
        vmwrite(GFLAGS, 0x202);
        vmwrite(INTRB, 1);
        r = enter();
        CHECK(r, X_NMIWIN);
        CHECK(vmread(GRIP) - (u64)nops < 2, 1);
        vmwrite(INTRB, 0);
        vmwrite(ACTV, 1);
        CHECK(enter(), X_NMIWIN);
        CHECK(vmread(ACTV), 1);
        vmwrite(ACTV, 0);
        /* "NMI-window exiting" without virtual NMIs, virtual NMIs without NMI exiting */
        controls(PIN, 0, 1 << 5);
        CHECK(enter(), X_FAILED - 7);
        controls(PRI, 0, 1 << 22);
        controls(PIN, 1 << 5, 8);
        CHECK(enter(), X_FAILED - 7);
    }
    set_gate(2, trap_stubs + 32, 0, 0);
    vmx_disable();
}

static void read_debug(void)
{
    shared_[0] = READ_DR(7);
    shared_[1] = rdmsr(0x1d9);
    WRITE_DR(7, 0x402);
    wrmsr(0x1d9, 3);
    vmcall();
}
TEST(debugctl)
{
    vmx_enable();
    fresh(read_debug);
no_exits:
    controls(PRI, 1 << 28, 1 << 23);
    vmwrite(MSRBM, (u64)page());
    (void)&&no_exits;
    WRITE_DR(7, 0x402);
    wrmsr(0x1d9, 1);
    vmwrite(GDR7, 0x404);
    vmwrite(GDEBUGCTL, 2);
    CHECK(controls(ENTRYC, 4, 0), 1);
    CHECK(controls(EXITC, 4, 0), 1);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], 0x404);
    CHECK(shared_[1], 2);
    CHECK(READ_DR(7), 0x400);
    CHECK(rdmsr(0x1d9), 0);
    CHECK(vmread(GDR7), 0x402);
    CHECK(vmread(GDEBUGCTL), 3);
    if (controls(ENTRYC, 0, 4) && controls(EXITC, 0, 4)) {
        WRITE_DR(7, 0x402);
        wrmsr(0x1d9, 1);
        vmwrite(GDR7, 0x404);
        vmwrite(GDEBUGCTL, 2);
        guest_is(read_debug);
        CHECK(enter(), X_VMCALL);
        CHECK(shared_[0], 0x402);
        CHECK(shared_[1], 1);
        CHECK(READ_DR(7), 0x400);
        CHECK(vmread(GDR7), 0x404);
        CHECK(vmread(GDEBUGCTL), 2);
    }
    WRITE_DR(7, 0x400);
    wrmsr(0x1d9, 0);
    vmx_disable();
}

static void swap_msr(void)
{
    shared_[0] = rdmsr(0xc0000102);
    wrmsr(0xc0000102, 0x3333);
    vmcall();
}
TEST(msrs)
{
    vmx_enable();
    fresh(swap_msr);
    controls(PRI, 1 << 28, 0);
    vmwrite(MSRBM, (u64)page());
    u64 *en = page(), *st = page(), *ld = page();
    en[0] = st[0] = ld[0] = 0xc0000102;
    en[1] = 0x1111;
    ld[1] = 0x2222;
    vmwrite(ENTRY_LD, (u64)en);
    vmwrite(ENTRY_LDN, 1);
    vmwrite(EXIT_ST, (u64)st);
    vmwrite(EXIT_STN, 1);
    vmwrite(EXIT_LD, (u64)ld);
    vmwrite(EXIT_LDN, 1);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], 0x1111);
    CHECK(st[1], 0x3333);
    CHECK(rdmsr(0xc0000102), 0x2222);
    vmwrite(EXIT_STN, 0);
    vmwrite(EXIT_LDN, 0);
    /* what may not be loaded */
    static const struct {
        u64 msr, value;
    } bad[] = {{0xc0000100, 0},
               {0xc0000101, 0},
               {0x800, 0},
               {0x8ff, 0},
               {0xc0000102, 1ull << 62},
               {1ull << 32 | 0xc0000102, 0},
               {0x277, 3},
               {0x480, 0},
               {0x12345678, 0},
               {0xc0000080, 1ull << 40},
               {0x79, 0},
               {0x8b, 0},
               {0x1b, 1},
               {0xc0000082, 1ull << 50}};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (bad[i].msr == 0x79 || bad[i].msr == 0x8b)
            continue;
        en[0] = 0xc0000102;
        en[1] = 0x1111;
        en[2] = bad[i].msr;
        en[3] = bad[i].value;
        vmwrite(ENTRY_LDN, 2);
        guest_is(swap_msr);
        CHECK_AT(bad[i].msr, enter(), X_BADMSR);
        CHECK(vmread(QUAL), 2);
        CHECK(vmread(REASON), VALID | X_BADMSR);
    }
    CHECK(launched, 0 + 1);
    en[2] = 0x10;
    en[3] = 1ull << 50;
    st[0] = 0x10;
    vmwrite(EXIT_STN, 1);
    guest_is(just_call);
    u64 before = rdtsc();
    CHECK(enter(), X_VMCALL); /* IA32_TIME_STAMP_COUNTER may be loaded; stored it has the offset */
    CHECK(st[1] >= 1ull << 50, 1);
    (void)before;
    /* a failed entry leaves the VMCS clear or launched as it was */
    fresh(just_call);
    vmwrite(ENTRY_LD, (u64)en);
    vmwrite(ENTRY_LDN, 1);
    en[0] = 0x12345678;
    CHECK(enter(), X_BADMSR);
    CHECK(enter(), X_BADMSR);
    vmwrite(ENTRY_LDN, 0);
    CHECK(enter(), X_VMCALL);
    /* many */
    guest_is(just_call);
    en = (u64 *)0x38000000;
    for (int i = 0; i < 512; i++)
        en[2 * i] = 0xc0000102, en[2 * i + 1] = (u64)i;
    vmwrite(ENTRY_LD, (u64)en);
    vmwrite(ENTRY_LDN, 512);
    vmwrite(EXIT_LD, (u64)en);
    vmwrite(EXIT_LDN, 512);
    vmwrite(EXIT_ST, (u64)en);
    vmwrite(EXIT_STN, 512);
    CHECK(enter(), X_VMCALL);
    CHECK(rdmsr(0xc0000102), 511);
    vmx_disable();
    wrmsr(0xc0000102, 0);
}
