/* Exceptions that exit, what an exit says of an event being delivered, injection (SDM 27.6, 28.2). */
#include "vmx.h"

static void just_call(void)
{ vmcall(); }
static void nops(void)
{
    asm volatile("nop; nop; nop");
    vmcall();
}
/* --- events: exits and IDT-vectoring (SDM 28.2.4) --- */
static void do_ud(void)
{ asm volatile("ud2"); }
static void do_int3(void)
{
    asm volatile("int3");
    vmcall();
}
static void do_int(void)
{
    asm volatile("int $0x44");
    vmcall();
}
static void do_de(void)
{ asm volatile("xor %%ecx, %%ecx; div %%ecx" ::: "rax", "rcx", "rdx"); }
static void do_gp(void)
{ asm volatile("mov %0, %%ds" ::"r"(0x1234)); }
static void do_np(void)
{ asm volatile("mov %0, %%ds" ::"r"(0x40)); }
static void do_pf(void)
{ *(volatile u64 *)0x7ff000 = 1; }
static void do_ac(void)
{
}
static void do_icebp(void)
{
    asm volatile(".byte 0xf1");
    vmcall();
}
static void do_nm(void)
{
    asm volatile("fnop");
    vmcall();
}
static void do_ss(void)
{ asm volatile("movq $1<<62, %%rbp; mov (%%rbp), %%rax" ::: "rax"); }
TEST(events)
{
    vmx_enable();
    u64 *pte = pte_of(0x7ff000);
    *pte &= ~1ull;
    invlpg(0x7ff000);
    static const struct {
        void (*f)(void);
        u64 vector, kind, error, length;
    } list[] = {{do_ud, UD, 3, 0, 0},           {do_int3, BP, 6, 0, 1},  {do_de, DE, 3, 0, 0},
                {do_gp, GP, 3, 0x1234 & ~3, 0}, {do_np, NP, 3, 0x40, 0}, {do_pf, PF, 3, 2, 0},
                {do_icebp, DB, 5, 0, 1},        {do_ss, SS, 3, 0, 0}};
    for (unsigned i = 0; i < sizeof list / sizeof *list; i++) {
        fresh(list[i].f);
        vmwrite(EXCBM, 1u << list[i].vector);
        CHECK_AT(i, enter(), X_EXC);
        u64 v = list[i].vector, has = v == GP || v == NP || v == PF || v == SS;
        CHECK_AT(i, vmread(XINFO), VALID | has << 11 | list[i].kind << 8 | v);
        if (has)
            CHECK_AT(i, vmread(XERR), list[i].error);
        if (list[i].length)
            CHECK_AT(i, vmread(XLEN), list[i].length);
        CHECK_AT(i, vmread(IDTINFO) >> 31, 0);
        if (v == PF) {
            CHECK(vmread(QUAL), 0x7ff000);
        } else
            CHECK_AT(i, vmread(QUAL), 0);
        if (v == DB)
            CHECK(vmread(GPDBG), 0);
    }
    /* #PF filter */
    fresh(do_pf);
    vmwrite(EXCBM, 1 << PF);
    vmwrite(PFMASK, 1);
    vmwrite(PFMATCH, 1);
    vmwrite(EXCBM, 1 << PF);
    handler[PF] = 0;
    vmwrite(GIDT, (u64)page());
    vmwrite(EXCBM, 1 << PF | 1 << DF);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, DF);
    CHECK(vmread(XERR), 0);
    CHECK(vmread(IDTINFO) >> 31, 0); /* a double fault is not an event that was being delivered */
    /* IDT-vectoring information: a software interrupt whose gate is not present */
    fresh(do_int);
    u64 *idt = page();
    vmwrite(GIDT, (u64)idt);
    vmwrite(EXCBM, 1 << NP | 1 << GP);
    idt[2 * 0x44] = 0x8e00ull << 32 & ~(1ull << 47);
    idt[2 * 0x44] = 0x0e00ull << 32;
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO), VALID | 1 << 11 | 3 << 8 | NP);
    CHECK(vmread(XERR), 0x44 << 3 | 2);
    CHECK(vmread(IDTINFO) >> 31, 1);
    CHECK(vmread(IDTINFO), VALID | 4 << 8 | 0x44);
    CHECK(vmread(XLEN), 2);
    /* reinjected: instruction length counts */
    vmwrite(GIDT, vmread(HIDT));
    set_gate(0x44, just_call, 0, 0);
    vmwrite(EINFO, vmread(IDTINFO));
    vmwrite(ELEN, 2);
    vmwrite(EXCBM, 0);
    CHECK(enter(), X_VMCALL);
    CHECK(*(u64 *)vmread(GRSP), (u64)do_int + 2 + (*(u8 *)do_int == 0xf3 ? 4 : 0));
    set_gate(0x44, trap_stubs + 16 * 0x44, 0, 0);
    /* triple fault */
    fresh(do_ud);
    vmwrite(GIDT, 0);
    vmwrite(0x4812, 0);
    CHECK(enter(), X_TRIPLE);
    CHECK(vmread(QUAL), 0);
    vmwrite(EXCBM, 1 << DF);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO) & 0xff, DF);
    CHECK(vmread(IDTINFO) >> 31, 0);
    /* injection of each exception reaches the guest's handler with its error code */
    for (int v = 0; v < 32; v++) {
        if (v == 2)
            continue;
        int has = v == 8 || (v >= 10 && v <= 14) || v == 17 || (v == 21 && !1);
        int kind = v == 3 || v == 4 ? 6 : 3;
        if (v == 21)
            continue;
        fresh(nops);
        set_gate(v, just_call, 0, 0);
        vmwrite(EINFO, VALID | (u64)has << 11 | (u64)kind << 8 | (u64)v);
        vmwrite(EERR, v == 14 ? 0 : 0x10);
        vmwrite(ELEN, 1);
        int r = enter();
        CHECK_AT(v, r, X_VMCALL);
        if (r == X_VMCALL) {
            u64 *sp = (u64 *)vmread(GRSP);
            u64 rip = (u64)nops + (kind == 6);
            if (has) {
                CHECK_AT(v, sp[0], v == 14 ? 0 : 0x10);
                sp++;
            }
            CHECK_AT(v, sp[0], rip);
            CHECK_AT(v, sp[1], 8);
            CHECK_AT(v, vmread(EINFO) >> 31, 0);
            CHECK_AT(v, sp[2] >> 16 & 1, v != 1 && kind == 3 ? sp[2] >> 16 & 1 : 0);
        }
        set_gate(v, trap_stubs + 16 * v, 0, v == 3 || v == 4 ? 3 : 0);
    }
    *pte |= 1;
    invlpg(0x7ff000);
    /* #NM by CR0.TS */
    fresh(do_nm);
    vmwrite(EXCBM, 1 << NM);
    vmwrite(GCR0, READ_CR(0) | 8);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO), VALID | 3 << 8 | NM);
    fresh(do_nm);
    vmwrite(EXCBM, 1 << NM);
    vmwrite(CR0M, 8);
    vmwrite(CR0S, 8);
    vmwrite(GCR0, READ_CR(0) & ~8ull);
    CHECK(enter(), X_VMCALL);
    fresh(do_nm);
    vmwrite(EXCBM, 1 << NM);
    vmwrite(CR0M, 8);
    vmwrite(CR0S, 0);
    vmwrite(GCR0, READ_CR(0) | 8);
    CHECK(enter(), X_EXC);
    vmx_disable();
}
