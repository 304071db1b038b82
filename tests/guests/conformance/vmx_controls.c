/* What controls do: timer, PAT, EFER, control registers, ports (SDM 26 to 28). */
#include "vmx.h"

/* --- preemption timer (SDM 26.5.1, 27.7.4) --- */
static void spin_then_call(void)
{
    for (volatile int i = 0; i < 20000000; i++)
        ;
    vmcall();
}
static void halt_then_call(void)
{
    asm volatile("hlt");
    vmcall();
}
static void two_calls(void)
{
    vmcall();
    vmcall();
}

TEST(timer)
{
    vmx_enable();
    fresh(spin_then_call);
    u32 rate = rdmsr(0x485) & 31;
    if (!controls(PIN, 1 << 6, 0)) {
        vmx_disable();
        return;
    }
    vmwrite(PTIMER, 0);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(GRIP), (u64)spin_then_call);
    CHECK(vmread(XLEN), 0);
    guest_is(two_calls);
    vmwrite(PTIMER, 10000000);
    CHECK(enter(), X_VMCALL);
    CHECK(vmread(PTIMER), 10000000);
    CHECK(controls(EXITC, 1 << 22, 0), 1);
    skip();
    CHECK(enter(), X_VMCALL);
    CHECK(vmread(PTIMER) <= 10000000, 1);
    guest_is(spin_then_call);
    vmwrite(PTIMER, 100000);
    u64 t = rdtsc();
    CHECK(enter(), X_PTIMER);
    CHECK(((rdtsc() - t) >> rate) >= 100000, 1);
    CHECK(vmread(PTIMER), 0);
    guest_is(halt_then_call);
    vmwrite(PTIMER, 100000);
    t = rdtsc();
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(ACTV), 1);
    CHECK(((rdtsc() - t) >> rate) >= 100000, 1);
    /* enter in HLT state with the timer at zero */
    vmwrite(PTIMER, 0);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(ACTV), 1);
    /* with TF set and a timer of zero: no #DB is lost, the exit comes first */
    vmwrite(ACTV, 0);
    guest_is(two_calls);
    vmwrite(GFLAGS, 0x102);
    vmwrite(PTIMER, 0);
    vmwrite(EXCBM, 2);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(GPDBG), 0);
    /* a pending #DB comes before the timer */
    guest_is(two_calls);
    vmwrite(GFLAGS, 0x102);
    vmwrite(GPDBG, 0x4000);
    vmwrite(PTIMER, 0);
    CHECK(enter(), X_EXC);
    CHECK(vmread(XINFO), VALID | 3 << 8 | 1);
    CHECK(vmread(GRIP), (u64)two_calls);
    vmwrite(GPDBG, 0);
    /* an injected event is delivered first */
    guest_is(two_calls);
    vmwrite(GFLAGS, 0x202);
    vmwrite(EXCBM, 0);
    vmwrite(PTIMER, 0);
    vmwrite(EINFO, VALID | 0xe1);
    set_gate(0xe1, two_calls, 0, 0);
    CHECK(enter(), X_PTIMER);
    CHECK(vmread(GRIP), (u64)two_calls);
    CHECK(vmread(IDTINFO) >> 31, 0);
    vmx_disable();
}

static void read_pat(void)
{
    shared_[0] = rdmsr(0x277);
    wrmsr(0x277, 0x6);
    vmcall();
    shared_[0] = rdmsr(0x277);
    vmcall();
}
static void read_efer(void)
{
    shared_[0] = rdmsr(0xc0000080);
    wrmsr(0xc0000080, shared_[0] ^ 0x800);
    vmcall();
    shared_[0] = rdmsr(0xc0000080);
    vmcall();
}
static void no_msr_exits(void)
{
    controls(PRI, 1 << 28, 0);
    vmwrite(MSRBM, (u64)page());
}

TEST(patefer)
{
    vmx_enable();
    fresh(read_pat);
    no_msr_exits();
    u64 pat = rdmsr(0x277), efer = rdmsr(0xc0000080);
    CHECK(controls(ENTRYC, 1 << 14, 0) && controls(EXITC, 1 << 18 | 1 << 19, 0), 1);
    vmwrite(GPAT, 0);
    vmwrite(HPAT, pat);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], 0);
    CHECK(vmread(GPAT), 6);
    CHECK(rdmsr(0x277), pat);
    vmwrite(GPAT, pat);
    skip();
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], pat);
    fresh(read_efer);
    no_msr_exits();
    vmwrite(GEFER, efer ^ 0x800);
    vmwrite(HEFER, efer ^ 1);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], efer ^ 0x800);
    CHECK(vmread(GEFER), efer);
    CHECK(rdmsr(0xc0000080), efer ^ 1);
    wrmsr(0xc0000080, efer);
    /* without the controls: EFER stays, but LMA follows the entry control */
    fresh(read_efer);
    no_msr_exits();
    controls(ENTRYC, 0, 1 << 15);
    controls(EXITC, 0, 1 << 20 | 1 << 21);
    vmwrite(GEFER, 0);
    vmwrite(HEFER, 0);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], efer);
    CHECK(vmread(GEFER), 0);
    CHECK(rdmsr(0xc0000080), efer ^ 0x800);
    wrmsr(0xc0000080, efer);
    vmx_disable();
}

static void use_crs(void)
{
    shared_[0] = READ_CR(0);
    shared_[1] = READ_CR(4);
    WRITE_CR(0, shared_[0] ^ 10);
    WRITE_CR(4, shared_[1] ^ 12);
    shared_[2] = READ_CR(0);
    shared_[3] = READ_CR(4);
    vmcall();
    asm volatile("mov %0, %%rsi; mov %%rsi, %%cr0" ::"r"(shared_[4]) : "rsi");
    asm volatile("mov %0, %%rsi; mov %%rsi, %%cr4" ::"r"(shared_[5]) : "rsi");
    asm volatile("clts; smsw %%ax; lmsw %%ax; lmsw %1" ::"a"(0), "m"(shared_[6]));
    vmcall();
}
TEST(crs)
{
    vmx_enable();
    fresh(use_crs);
    u64 c0 = READ_CR(0), c4 = READ_CR(4);
    CHECK(enter(), X_VMCALL);
    CHECK(shared_[0], c0);
    CHECK(shared_[1], c4);
    CHECK(shared_[2], c0 ^ 10);
    CHECK(shared_[3], c4 ^ 12);
    CHECK(vmread(GCR0), c0 ^ 10);
    CHECK(vmread(GCR4), c4 ^ 12);
    CHECK(READ_CR(0), c0);
    CHECK(READ_CR(4), c4);
    fresh(use_crs);
    vmwrite(CR0M, 10);
    vmwrite(CR4M, 12);
    vmwrite(CR0S, (c0 ^ 10) & 10);
    vmwrite(CR4S, (c4 ^ 12) & 12);
    CHECK(enter(), X_CR);
    CHECK(shared_[0], c0 ^ 10);
    CHECK(shared_[1], c4 ^ 12);
    CHECK(vmread(QUAL) & 0xff0ff, 0);
    CHECK(vmread(XLEN), 3);
    skip();
    CHECK(enter(), X_CR);
    CHECK(vmread(QUAL) & 0xff0ff, 4);
    skip();
    shared_[4] = c0 ^ 10;
    shared_[5] = c4 ^ 12;
    shared_[6] = 0xf;
    CHECK(enter(), X_VMCALL);
    skip();
    vmwrite(CR0S, 8); /* TS=1, MP=0 shown, CLTS then exits */
    shared_[4] = c0 | 8;
    shared_[4] &= ~2ull;
    CHECK(enter(), X_CR);
    CHECK(vmread(QUAL), 0x20);
    CHECK(vmread(XLEN), 2);
    skip();
    vmwrite(CR0S, 8);
    CHECK(enter(), X_CR);
    CHECK(vmread(QUAL) & 0x30, 0x30);
    CHECK(vmread(QUAL) >> 16, 0xf);
    CHECK(vmread(QUAL) & 0x40, 0x40);
    skip();
    CHECK(enter(), X_VMCALL);
    /* CR3 targets and exits */
    vmx_disable();
}

static void out_ports(void)
{
    inb(0x5000);
    outb(0x5000, 0);
    inl(0x5000);
    outl(0x5000, 0);
    asm volatile("inw %%dx, %%ax" ::"d"(0x5001) : "rax");
    asm volatile("outl %%eax, %%dx" ::"d"(0x4fff), "a"(0));
    asm volatile("inb $0x80, %%al" ::: "rax");
    outl(0xffff, 0);
    outl(0x7fff, 0);
    asm volatile("rep insb" ::"d"(0x5000), "c"(3ull), "D"(shared_) : "memory");
    asm volatile("rep outsl" ::"d"(0x5000), "c"(1ull), "S"(shared_) : "memory");
    vmcall();
}
TEST(io)
{
    vmx_enable();
    fresh(out_ports);
    u8 *a = page(), *b = page();
    vmwrite(IO_A, (u64)a);
    vmwrite(IO_B, (u64)b);
    controls(PRI, 1 << 25, 1 << 24);
    a[0x5000 / 8] = 1;
    b[0] = 1;
    static const u64 quals[] = {0x50000008, 0x50000000, 0x5000000b, 0x50000003, 0x4fff0003};
    for (int i = 0; i < 5; i++) {
        CHECK_AT(i, enter(), X_IO);
        CHECK_AT(i, vmread(QUAL), quals[i]);
        CHECK(vmread(XLEN), 1);
        skip();
    }
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0xffff0003);
    skip(); /* wraps: exits whatever the bitmaps say */
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x7fff0003);
    skip(); /* 8000H lies in bitmap B */
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x50000038);
    CHECK(vmread(LINEAR), (u64)shared_);
    skip();
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x50000033);
    CHECK(vmread(LINEAR), (u64)shared_);
    skip();
    CHECK(enter(), X_VMCALL);
    fresh(out_ports);
    vmwrite(IO_A, (u64)a);
    vmwrite(IO_B, (u64)b);
    controls(PRI, 1 << 24, 1 << 25);
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0x50000008);
    CHECK(gr.rdx, 0x5000);
    guest_is(out_ports);
    a[0x5000 / 8] = 0;
    b[0] = 0;
    controls(PRI, 1 << 25 | 1 << 24, 0); /* bitmaps win */
    CHECK(enter(), X_IO);
    CHECK(vmread(QUAL), 0xffff0003);
    vmx_disable();
}
