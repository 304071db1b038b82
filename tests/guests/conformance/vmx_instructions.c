/* VMX instructions, capabilities, the fields of a VMCS (SDM 25, 31, appendix A). */
#include "vmx.h"

static int width(void)
{
    u32 r[4];
    cpuid(0x80000008, 0, r);
    return (int)(r[0] & 0xff);
}

TEST(caps)
{
    u64 basic = rdmsr(0x480);
    CHECK(basic >> 31 & 1, 0);
    CHECK(((basic >> 32) & 0x1fff) - 1 < 4096, 1);
    CHECK((basic >> 50 & 15) == 0 || (basic >> 50 & 15) == 6, 1);
    CHECK(basic >> 57, 0);
    u64 misc = rdmsr(0x485);
    CHECK(misc & 0x80007e00, 0);
    CHECK((misc >> 16 & 0x1ff) <= 256, 1);
    static const struct {
        u32 a, b, def;
    } pairs[] = {{0x481, 0x48d, 0x16},
                 {0x482, 0x48e, 0x401e172},
                 {0x48b, 0x48b, 0},
                 {0x483, 0x48f, 0x36dff},
                 {0x484, 0x490, 0x11ff}};
    for (int i = 0; i < 5; i++) {
        u64 v = rdmsr(pairs[i].a), t = rdmsr(pairs[i].b);
        CHECK_AT(pairs[i].a, (u32)v & pairs[i].def, pairs[i].def);
        CHECK_AT(pairs[i].a, (u32)v & ~(u32)(v >> 32), 0);
        CHECK_AT(pairs[i].a, v >> 32, t >> 32);
        CHECK_AT(pairs[i].a, (u32)v, (u32)t | pairs[i].def);
    }
    CHECK(rdmsr(0x486) & ~rdmsr(0x487), 0);
    CHECK(rdmsr(0x488) & ~rdmsr(0x489), 0);
    CHECK(rdmsr(0x48a) & ~0x3feull, 0);
    CHECK((rdmsr(0x48a) & 0x3fe) >= 0x2a, 1);
    /* what exists in EPT_VPID_CAP */
    CHECK(rdmsr(0x48c) & ~(1ull | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 14 | 1 << 16 | 1 << 17 | 1 << 20 | 1 << 21 |
                           1 << 22 | 1 << 25 | 1 << 26 | 1ull << 32 | 0xfull << 40),
          0);
    for (u32 m = 0x480; m <= 0x491; m++)
        CHECK_AT(m, FAULT(wrmsr(m, 0)), GP);
    CHECK(FAULT(wrmsr(0x3a, 0)), GP); /* locked */
}

static const u32 encodings[] = {
    0,      0x800,  0x802,  0x804,  0x806,  0x808,  0x80a,  0x80c,  0x80e,  0xc00,  0xc02,  0xc04,  0xc06,  0xc08,
    0xc0a,  0xc0c,  0x2000, 0x2002, 0x2004, 0x2006, 0x2008, 0x200a, 0x200c, 0x2010, 0x2012, 0x2014, 0x201a, 0x2400,
    0x2800, 0x2802, 0x2804, 0x2806, 0x280a, 0x280c, 0x280e, 0x2810, 0x2c00, 0x2c02, 0x4000, 0x4002, 0x4004, 0x4006,
    0x4008, 0x400a, 0x400c, 0x400e, 0x4010, 0x4012, 0x4014, 0x4016, 0x4018, 0x401a, 0x401c, 0x401e, 0x4020, 0x4022,
    0x4402, 0x4404, 0x4406, 0x4408, 0x440a, 0x440c, 0x440e, 0x4800, 0x4802, 0x4804, 0x4806, 0x4808, 0x480a, 0x480c,
    0x480e, 0x4810, 0x4812, 0x4824, 0x4826, 0x4828, 0x482a, 0x482e, 0x4c00, 0x6000, 0x6002, 0x6004, 0x6006, 0x6008,
    0x600a, 0x600c, 0x600e, 0x6400, 0x6402, 0x6404, 0x6406, 0x6408, 0x640a, 0x6800, 0x6802, 0x6804, 0x6806, 0x6808,
    0x680a, 0x680c, 0x680e, 0x6810, 0x6812, 0x6814, 0x6816, 0x6818, 0x681a, 0x681c, 0x681e, 0x6820, 0x6822, 0x6824,
    0x6826, 0x6c00, 0x6c02, 0x6c04, 0x6c06, 0x6c08, 0x6c0a, 0x6c0c, 0x6c0e, 0x6c10, 0x6c12, 0x6c14, 0x6c16,
};
#define FIELDS (sizeof encodings / sizeof *encodings)
static u64 value_of(u32 e, u64 cookie)
{
    static const u64 masks[] = {0xffff, ~0ull, 0xffffffff, ~0ull};
    u64 v = (cookie | (u64)e << 8 | 0xdeadbeefull << 32) & masks[e >> 13];
    return v;
}
static void set_all(u64 cookie)
{
    for (unsigned i = 0; i < FIELDS; i++)
        CHECK_AT(encodings[i], do_vmwrite(encodings[i], value_of(encodings[i], cookie)), 0);
}
static void check_all(u64 cookie)
{
    for (unsigned i = 0; i < FIELDS; i++)
        CHECK_AT(encodings[i], vmread(encodings[i]), value_of(encodings[i], cookie));
}

TEST(fields)
{
    vmx_enable();
    u64 *a = page(), *b = page(), v = 0;
    *(u32 *)a = *(u32 *)b = revision;
    CHECK(do_vmwrite(0x4000, 1), VMFAIL_INVALID); /* no current VMCS */
    CHECK(do_vmread(0x4000, &v), VMFAIL_INVALID);
    CHECK(vmclear((u64)a), 0);
    CHECK(vmptrld((u64)a), 0);
    CHECK(rdmsr(0x485) >> 29 & 1, 1); /* VMWRITE to any field */
    set_all(0x42);
    check_all(0x42);
    vmptrld((u64)a);
    check_all(0x42);
    vmclear((u64)a);
    vmptrld((u64)a);
    check_all(0x42);
    vmclear((u64)b);
    check_all(0x42);
    vmptrld((u64)b);
    set_all(1);
    check_all(1);
    vmptrld((u64)a);
    check_all(0x42);
    vmptrld((u64)b);
    check_all(1);
    vmclear((u64)a);
    check_all(1);
    vmwrite(0x2010, 0x0123456789abcdefull);
    CHECK(vmread(0x2010), 0x0123456789abcdefull);
    CHECK(vmread(0x2011), 0x01234567);
    vmwrite(0x2011, 0x76543210);
    CHECK(vmread(0x2010), 0x7654321089abcdefull);
    for (u32 h = 0x2001; h < 0x2c04; h += 2) { /* each full field has its high half, and no other exists */
        CHECK_AT(h, do_vmread(h, &v), do_vmread(h & ~1u, &v));
    }
    u32 max = 0;
    for (u32 e = 0; e < 0x7000; e++)
        if (!do_vmread(e, &v)) {
            u32 i = e >> 1 & 0x1ff;
            if (i > max)
                max = i;
        }
    CHECK(rdmsr(0x48a) >> 1 & 0x1ff, max);
    for (u32 e = 0; e < 0x10000; e++) {
        int r = do_vmread(e, &v);
        if (e & 0x9000)
            CHECK_AT(e, r, VMFAIL_VALID);
    }
    CHECK(do_vmread(0x10000, &v), VMFAIL_VALID);
    CHECK(do_vmread(1ull << 40, &v), VMFAIL_VALID);
    CHECK(do_vmread(0x7ffe, &v), VMFAIL_VALID);
    CHECK(vmread(IERR), 12);
    CHECK(do_vmwrite(0x7ffe, 0), VMFAIL_VALID);
    CHECK(vmread(IERR), 12);
    vmclear((u64)b);
    vmx_disable();
}

TEST(pointers)
{
    vmx_enable();
    u64 *a = page(), p = 0, beyond = 1ull << (width() + 1), at = 1ull << width();
    *(u32 *)a = revision;
    CHECK(vmptrst(&p), 0);
    CHECK(p, ~0ull);
    CHECK(vmclear((u64)a + 1), VMFAIL_INVALID);
    CHECK(vmclear((u64)a | beyond), VMFAIL_INVALID);
    CHECK(vmclear((u64)a | at), VMFAIL_INVALID);
    CHECK(vmclear((u64)vmxon_area), VMFAIL_INVALID);
    CHECK(vmclear((u64)a), 0);
    CHECK(vmptrld((u64)a), 0);
    CHECK(vmptrst(&p), 0);
    CHECK(p, (u64)a);
    CHECK(vmptrld((u64)a + 1), VMFAIL_VALID);
    CHECK(vmread(IERR), 9);
    CHECK(vmptrld((u64)a | beyond), VMFAIL_VALID);
    CHECK(vmread(IERR), 9);
    CHECK(vmptrld((u64)vmxon_area), VMFAIL_VALID);
    CHECK(vmread(IERR), 10);
    CHECK(vmclear((u64)a + 1), VMFAIL_VALID);
    CHECK(vmread(IERR), 2);
    CHECK(vmclear((u64)vmxon_area), VMFAIL_VALID);
    CHECK(vmread(IERR), 3);
    u64 *b = page();
    *(u32 *)b = revision ^ 1;
    CHECK(vmptrld((u64)b), VMFAIL_VALID);
    CHECK(vmread(IERR), 11);
    if (!(rdmsr(0x48b) >> 46 & 1)) { /* no VMCS shadowing */
        *(u32 *)b = revision | 1u << 31;
        CHECK(vmptrld((u64)b), VMFAIL_VALID);
        CHECK(vmread(IERR), 11);
    }
    CHECK(vmptrst(&p), 0);
    CHECK(p, (u64)a);
    CHECK(vmxon((u64)vmxon_area), VMFAIL_VALID);
    CHECK(vmread(IERR), 15);
    CHECK(OUTCOME("vmcall", "i"(0)), VMFAIL_VALID);
    CHECK(vmread(IERR), 1);
    vmclear((u64)a);
    CHECK(OUTCOME("vmlaunch", "i"(0)), VMFAIL_INVALID);
    fresh(vmcall);
    CHECK(OUTCOME("vmresume", "i"(0)), VMFAIL_VALID);
    CHECK(vmread(IERR), 5);
    CHECK(enter(), X_VMCALL);
    launched = 0;
    CHECK(enter(), X_FAILED - 4);
    asm volatile("mov %%ss, %%eax; mov %%eax, %%ss; vmlaunch; pushfq; popq %0" : "=r"(p)::"rax", "cc");
    CHECK(p & 0x40, 0x40);
    CHECK(vmread(IERR), 26);
    /* memory operands that fault */
    u64 *bad = (u64 *)0x7ff000;
    u64 *pte = pte_of((u64)bad);
    *pte &= ~1ull;
    invlpg((u64)bad);
    CHECK(FAULT(vmptrst(bad)), PF);
    CHECK(caught.error, 2);
    CHECK(READ_CR(2), (u64)bad);
    CHECK(FAULT(vmptrld((u64)a); OUTCOME("vmptrld %1", "m"(*bad))), PF);
    CHECK(caught.error, 0);
    CHECK(FAULT(OUTCOME("vmclear %1", "m"(*(u64 *)(1ull << 63)))), GP);
    CHECK(FAULT(OUTCOME("vmptrst (%1)", "r"(1ull << 63))), GP);
    CHECK(FAULT(OUTCOME("vmread %1, %2", "r"(0x4402ull), "m"(*bad))), PF);
    CHECK(caught.error, 2);
    CHECK(FAULT(OUTCOME("vmwrite %1, %2", "m"(*bad), "r"(0x4402ull))), PF);
    CHECK(caught.error, 0);
    *pte &= ~2ull;
    *pte |= 1;
    invlpg((u64)bad);
    CHECK(FAULT(vmptrst(bad)), PF);
    CHECK(caught.error, 3);
    *pte |= 2;
    invlpg((u64)bad);
    vmx_disable();
}

TEST(touch)
{ /* flags survive a faulting VMREAD */
    vmx_enable();
    fresh(vmcall);
    u64 *bad = (u64 *)0x7fe000;
    u64 *pte = pte_of((u64)bad);
    *pte &= ~1ull;
    invlpg((u64)bad);
    for (int i = 0; i < 2; i++) {
        u64 f = i ? 0x45 : 0x91;
        CHECK(FAULT(asm volatile("pushq %0; popfq; vmread %2, %1" ::"r"(f), "m"(*bad), "r"(0x804ull) : "cc")), PF);
        CHECK(caught.flags & 0xff, (f | 2) & 0xd7);
        CHECK(FAULT(asm volatile("pushq %0; popfq; vmwrite %1, %2" ::"r"(f), "m"(*bad), "r"(0x804ull) : "cc")), PF);
        CHECK(caught.flags & 0xff, (f | 2) & 0xd7);
    }
    *pte |= 1;
    invlpg((u64)bad);
    vmx_disable();
}

TEST(vmxon)
{
    u64 cr0 = READ_CR(0), cr4 = READ_CR(4), pa;
    vmx_enable();
    vmx_disable();
    pa = (u64)vmxon_area;
    WRITE_CR(4, cr4 & ~0x2000ull);
    CHECK(FAULT(vmxon(pa)), UD);
    CHECK(FAULT(vmxoff()), UD);
    CHECK(FAULT(vmclear(pa)), UD);
    CHECK(FAULT(do_vmwrite(0, 0)), UD);
    CHECK(FAULT(OUTCOME("vmlaunch", "i"(0))), UD);
    CHECK(FAULT(invept(2, 0, 0)), UD);
    CHECK(FAULT(invvpid(2, 0, 0)), UD);
    WRITE_CR(4, cr4 | 0x2000);
    CHECK(FAULT(do_vmwrite(0, 0)), UD);
    WRITE_CR(0, cr0 & ~0x20ull); /* NE */
    CHECK(FAULT(vmxon(pa)), GP);
    WRITE_CR(0, cr0);
    CHECK(vmxon(pa + 1), VMFAIL_INVALID);
    CHECK(vmxon(pa | 1ull << (width() + 1)), VMFAIL_INVALID);
    *(u32 *)vmxon_area = 0xba9da9;
    CHECK(vmxon(pa), VMFAIL_INVALID);
    *(u32 *)vmxon_area = revision | 1u << 31;
    CHECK(vmxon(pa), VMFAIL_INVALID);
    *(u32 *)vmxon_area = revision;
    CHECK(FAULT(OUTCOME("vmxon (%1)", "r"(1ull << 62))), GP);
    CHECK(vmxon(pa), 0);
    CHECK(FAULT(WRITE_CR(4, READ_CR(4) & ~0x2000ull)), GP);
    CHECK(FAULT(WRITE_CR(0, READ_CR(0) & ~0x20ull)), GP);
    CHECK(FAULT(WRITE_CR(0, READ_CR(0) & ~0x80000000ull)), GP);
    static u8 user_vmxoff[] = {0x0f, 0x01, 0xc4, 0xcd, 0xf0}, user_vmcall[] = {0x0f, 1, 0xc1, 0xcd, 0xf0};
    CHECK(FAULT(in_user_code(user_vmxoff)), GP);
    CHECK(FAULT(in_user_code(user_vmcall)), GP);
    CHECK(vmxoff(), 0);
    WRITE_CR(4, cr4);
    WRITE_CR(0, cr0);
}
