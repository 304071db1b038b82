/* Single steps, pending debug exceptions, the monitor trap flag (SDM 26.5.2, 27.7.3, 28.2.1). */
#include "vmx.h"
static volatile u64 dr6s[8], rips[8];
static volatile int n;
static void on_db(struct frame *f)
{
    if (n < 8) {
        dr6s[n] = READ_DR(6);
        rips[n] = f->rip;
        n++;
    }
    WRITE_DR(6, 0);
    f->flags &= ~0x100ull;
}
static void nops(void)
{
    asm volatile("nop; nop; nop");
    vmcall();
}
static void cpuid_nop(void)
{
    asm volatile("cpuid; nop" ::: "rax", "rcx", "rdx");
    vmcall();
}
static void ss_cpuid(void)
{
    asm volatile("mov %%ss, %%eax; mov %%eax, %%ss; cpuid; nop" ::: "rax", "rcx", "rdx");
    vmcall();
}
static void hlt_nop(void)
{
    asm volatile("hlt; nop");
    vmcall();
}
static void int3(void)
{
    asm volatile("nop; int3; nop");
    vmcall();
}
TEST(steps)
{
    vmx_enable();
    handler[DB] = on_db;
    WRITE_DR(6, 0);
    /* TF in the guest, the exception in the guest */
    n = 0;
    fresh(nops);
    vmwrite(GFLAGS, 0x102);
    CHECK(enter(), X_VMCALL);
    CHECK(n, 1);
    CHECK(rips[0], (u64)nops + 1);
    CHECK(dr6s[0] & 0x4000, 0x4000);
    /* intercepted: qualification; DR6 and RFLAGS are not changed */
    fresh(nops);
    vmwrite(GFLAGS, 0x102);
    vmwrite(EXCBM, 2);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO), VALID | 3 << 8 | 1);
    CHECK(vmread(QUAL), 0x4000);
    CHECK(vmread(GRIP), (u64)nops + 1);
    CHECK(vmread(GFLAGS), 0x102);
    CHECK(vmread(GPDBG), 0);
    /* over an instruction that exits: L1 has to pend it */
    fresh(cpuid_nop);
    vmwrite(GFLAGS, 0x102);
    vmwrite(EXCBM, 2);
    CHECK(enter(), X_CPUID);
    CHECK(vmread(GPDBG), 0);
    skip();
    vmwrite(GPDBG, 0x4000);
    CHECK(enter(), X_EXC);
    CHECK(vmread(QUAL), 0x4000);
    CHECK(vmread(GRIP), (u64)cpuid_nop + 2);
    /* behind MOV SS */
    fresh(ss_cpuid);
    vmwrite(GFLAGS, 0x102);
    vmwrite(GRIP, (u64)ss_cpuid + 2);
    vmwrite(EXCBM, 2);
    int r = enter();
    if (r == X_CPUID) {
        CHECK(vmread(INTRB), 2);
        CHECK(vmread(GPDBG), 0x4000);
        skip();
        vmwrite(INTRB, 0);
        CHECK(enter(), X_EXC);
        CHECK(vmread(QUAL), 0x4000);
    } else
        CHECK(r, X_CPUID);
    /* pending at entry: delivered before the first instruction; enabled breakpoint and BS together */
    n = 0;
    fresh(nops);
    vmwrite(GPDBG, 0x1001);
    CHECK(enter(), X_VMCALL);
    CHECK(n, 1);
    CHECK(rips[0], (u64)nops);
    CHECK(dr6s[0] & 0x400f, 1);
    fresh(nops);
    vmwrite(GFLAGS, 0x102);
    vmwrite(GPDBG, 0x5001);
    vmwrite(EXCBM, 2);
    CHECK(enter(), X_EXC);
    CHECK(vmread(QUAL), 0x4001);
    n = 0;
    fresh(nops);
    vmwrite(GPDBG, 1);
    CHECK(enter(), X_VMCALL);
    CHECK(n, 0); /* not enabled: only pending in DR6 */
    /* it wakes HLT */
    n = 0;
    fresh(nops);
    vmwrite(ACTV, 1);
    vmwrite(GFLAGS, 0x102);
    vmwrite(GPDBG, 0x4000);
    CHECK(enter(), X_VMCALL);
    CHECK(n, 1);
    CHECK(rips[0], (u64)nops);
    n = 0;
    fresh(hlt_nop);
    controls(PRI, 0, 1 << 7);
    vmwrite(GFLAGS, 0x102);
    CHECK(enter(), X_VMCALL);
    CHECK(n, 1);
    CHECK(rips[0], (u64)hlt_nop + 1);
    /* MTF */
    if (controls(PRI, 1 << 27, 0)) {
        fresh(nops);
        controls(PRI, 1 << 27, 0);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)nops + 1);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)nops + 2);
        fresh(int3);
        controls(PRI, 1 << 27, 0);
        set_gate(3, nops, 0, 3);
        CHECK(enter(), X_MTF);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)nops);
        set_gate(3, trap_stubs + 48, 0, 3);
        fresh(cpuid_nop);
        controls(PRI, 1 << 27, 0);
        CHECK(enter(), X_CPUID);
        skip();
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)cpuid_nop + 3);
        fresh(nops);
        controls(PRI, 1 << 27, 0);
        set_gate(0x44, int3, 0, 0);
        vmwrite(EINFO, VALID | 4 << 8 | 0x44);
        vmwrite(ELEN, 2);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)int3);
        set_gate(0x44, trap_stubs + 16 * 0x44, 0, 0);
        fresh(nops);
        vmwrite(EINFO, VALID | 7 << 8);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)nops);
        CHECK(enter(), X_VMCALL);
        fresh(nops);
        controls(PRI, 1 << 27, 0);
        vmwrite(ACTV, 1);
        vmwrite(GFLAGS, 0x202);
        vmwrite(EINFO, VALID | 0xe0);
        set_gate(0xe0, int3, 0, 0);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), (u64)int3);
        CHECK(vmread(ACTV), 0);
        fresh(hlt_nop);
        controls(PRI, 1 << 27, 1 << 7);
        CHECK(enter(), X_MTF);
        CHECK(vmread(ACTV), 1);
        CHECK(vmread(GRIP), (u64)hlt_nop + 1);
    }
    vmx_disable();
}
