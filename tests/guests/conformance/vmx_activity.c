/* Activity states, what is blocked in which, the order of what comes at one boundary (SDM 26.2, 26.5, 27.7). */
#include "vmx.h"

static void just_call(void)
{ vmcall(); }
static void nops(void)
{
    asm volatile("nop; nop; nop");
    vmcall();
}
static void hlt_nop(void)
{
    asm volatile("hlt; nop");
    vmcall();
}
static void wbinvd_nop(void)
{
    asm volatile("wbinvd; nop");
    vmcall();
}
static volatile u64 taken, nmis;
static void take(struct frame *f)
{
    (void)f;
    taken++;
    apic_write(0xb0, 0);
}
static void count_nmi(struct frame *f)
{
    (void)f;
    nmis++;
}
static void unblock_nmis(void)
{
    asm volatile("mov %%rsp, %%rax; pushq $0x10; pushq %%rax; pushfq; pushq $8; pushq $1f; iretq; 1: nop; nop" ::
                     : "rax", "memory");
}

TEST(activity)
{
    apic_on();
    vmx_enable();
    handler[0xf2] = take;
    handler[2] = count_nmi;
    u64 states = rdmsr(0x485) >> 6 & 7;
    CHECK(states & 1, 1);
    fresh(just_call);
    if (!(states & 2) || !controls(PIN, 1 << 6, 0)) {
        vmx_disable();
        return;
    }
    /* Shutdown: the preemption timer ends it, interrupts do not. */
    vmwrite(ACTV, 2);
    vmwrite(PTIMER, 1000);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(ACTV), 2);
    CHECK(vmread(GRIP), (u64)just_call);
    for (int direct = 0; direct < 2; direct++) {
        taken = 0;
        fresh(just_call);
        controls(PIN, direct ? 1 << 6 : 1 | 1 << 6, direct ? 1 : 0);
        vmwrite(ACTV, 2);
        vmwrite(GFLAGS, 0x202);
        vmwrite(PTIMER, 1000);
        apic_send(0xf2);
        CHECK_AT(direct, enter(), X_PTIMER);
        CHECK(vmread(ACTV), 2);
        CHECK(taken, 0);
        asm volatile("sti; nop; cli");
        CHECK(taken, 1);
    }
    /* nor does the interrupt window */
    fresh(just_call);
    controls(PIN, 1 << 6, 0);
    controls(PRI, 4, 0);
    vmwrite(ACTV, 2);
    vmwrite(GFLAGS, 0x202);
    vmwrite(PTIMER, 1000);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(ACTV), 2);
    if (controls(PIN, 8 | 1 << 5, 0)) {
        /* the NMI window does */
        fresh(just_call);
        controls(PIN, 8 | 1 << 5 | 1 << 6, 0);
        controls(PRI, 1 << 22, 0);
        vmwrite(ACTV, 2);
        vmwrite(PTIMER, 100000);
        CHECK(enter(), X_NMIWIN);
        CHECK(vmread(ACTV), 2);
        /* and an NMI: one that was held back while NMIs are blocked in root operation */
        nmis = 0;
        fresh(just_call);
        controls(PIN, 8 | 1 << 5, 0);
        vmwrite(ACTV, 1);
        apic_send(0x400); /* taken at once */
        CHECK(nmis, 1);
        fresh(just_call);
        controls(PIN, 8, 0);
        vmwrite(EINFO, VALID | 2 << 8 | 2); /* an injected NMI blocks them, */
        set_gate(2, just_call, 0, 0);
        CHECK(enter(), X_VMCALL);
        CHECK(vmread(INTRB), 8);
        set_gate(2, trap_stubs + 32, 0, 0);
        apic_send(0x400); /* also behind an exit for something else: SDM 28.5.5 */
        asm volatile("nop; nop");
        CHECK(nmis, 1);
        fresh(just_call);
        controls(PIN, 8 | 1 << 5, 0);
        vmwrite(ACTV, 2);
        CHECK(enter(), X_EXC);
        CHECK(vmread(XINFO) & ~0x1000ull, VALID | 2 << 8 | 2);
        CHECK(vmread(ACTV), 2);
        unblock_nmis();
        CHECK(nmis, 1);
    }
    vmx_disable();
}

/* --- one boundary, several events --- */
static volatile u16 selector = 16;
static void load_ss(void)
{
    asm volatile("mov %0, %%ss; nop; nop" ::"m"(selector));
    vmcall();
}
static volatile u64 stamps[2], go_on;
static void watch_the_clock(void)
{
    stamps[0] = rdtsc();
    while (go_on)
        stamps[1] = rdtsc();
    vmcall();
}
TEST(boundaries)
{
    vmx_enable();
    if (controls(PRI, 0, 0), fresh(nops), controls(PRI, 1 << 27, 0)) {
        /* MTF comes before a debug trap, which stays pending */
        vmwrite(GFLAGS, 0x102);
        vmwrite(EXCBM, 2);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)nops + 1);
        CHECK(vmread(GPDBG), 0x4000);
        controls(PRI, 0, 1 << 27);
        CHECK(enter(), X_EXC);
        CHECK(vmread(QUAL), 0x4000);
        CHECK(vmread(GRIP), (u64)nops + 1);
        /* HLT was executed before the entry: no instruction follows it until it ends */
        fresh(hlt_nop);
        controls(PRI, 1 << 27, 1 << 7);
        vmwrite(ACTV, 1);
        if (controls(PIN, 1 << 6, 0)) {
            vmwrite(PTIMER, 1000);
            CHECK(enter(), X_PTIMER);
            CHECK(vmread(ACTV), 1);
        }
    }
    /* a data breakpoint of MOV SS is held back for one instruction; single-step joins it */
    for (u64 tf = 0; tf < 2; tf++) {
        fresh(load_ss);
        controls(ENTRYC, 4, 0);
        WRITE_DR(0, &selector);
        vmwrite(GDR7, 0x400 | 2 | 7ull << 16); /* DR0: reads and writes of 2 bytes */
        vmwrite(GFLAGS, 2 | tf << 8);
        vmwrite(EXCBM, 2);
        u64 at = (u64)load_ss;
        CHECK_AT(tf, enter(), X_EXC);
        if (tf && vmread(GRIP) - at < 5) { /* an ENDBR in front */
            CHECK(vmread(QUAL), 0x4000);
            CHECK(enter(), X_EXC);
        }
        CHECK_AT(tf, vmread(QUAL), 1 | tf << 14);
        CHECK_AT(tf, ((u8 *)vmread(GRIP))[-1], 0x90);
        CHECK_AT(tf, ((u8 *)vmread(GRIP))[0], 0x90);
        CHECK_AT(tf, vmread(GPDBG), 0);
        WRITE_DR(0, 0);
    }
    /* what MOV SS left pending joins the single step of the next instruction; DR6 is not touched */
    static void (*const steps[])(void) = {nops, wbinvd_nop};
    for (int i = 0; i < 2; i++) {
        fresh(steps[i]);
        u64 at = (u64)steps[i];
        while (*(u8 *)at != (i ? 0x0f : 0x90))
            at++;
        vmwrite(GRIP, at);
        vmwrite(GFLAGS, 0x102);
        vmwrite(GPDBG, 0x5001);
        vmwrite(INTRB, 2);
        vmwrite(EXCBM, 2);
        WRITE_DR(6, 0xffff4ffaull);
        CHECK_AT(i, enter(), X_EXC);
        CHECK_AT(i, vmread(QUAL), 0x4001);
        CHECK_AT(i, vmread(GRIP), at + 1 + (u64)i);
        CHECK_AT(i, vmread(GPDBG), 0);
        CHECK_AT(i, READ_DR(6), 0xffff4ffaull);
        WRITE_DR(6, 0);
    }
    /* a guest reads no time that lies behind the end of its preemption timer (up to a millisecond: no slice is
     * longer) */
    u32 rate = rdmsr(0x485) & 31;
    for (u64 ticks = 1000; ticks << rate < 1000000; ticks *= 3) {
        fresh(watch_the_clock);
        if (!controls(PIN, 1 << 6, 0))
            break;
        go_on = 1;
        vmwrite(PTIMER, ticks);
        stamps[0] = stamps[1] = 0;
        CHECK(enter(), X_PTIMER);
        CHECK_AT(stamps[1], stamps[1] < ((stamps[0] >> rate) + ticks) << rate, 1);
        CHECK(rdtsc() >= ((stamps[0] >> rate) + ticks) << rate, 1);
    }
    vmx_disable();
}
