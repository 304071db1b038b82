/* INVEPT, INVVPID, APIC virtualization (SDM 30, 31). */
#include "vmx.h"
static int width(void)
{
    u32 r[4];
    cpuid(0x80000008, 0, r);
    return (int)(r[0] & 0xff);
}
static void just_call(void)
{ vmcall(); }
TEST(invalidations)
{
    if (!offered(2) || !offered(1 << 5))
        return;
    vmx_enable();
    fresh(just_call);
    u64 cap = rdmsr(0x48c), eptp = identity_ept(2);
    for (u64 k = 0; k < 6; k++) {
        int e = (k == 1 && cap >> 25 & 1) || (k == 2 && cap >> 26 & 1), v = k < 4 && cap >> (40 + k) & 1;
        CHECK_AT(k, invept(k, eptp, 0), e ? 0 : VMFAIL_VALID);
        if (!e)
            CHECK(vmread(IERR), 28);
        CHECK_AT(k, invvpid(k, 1, 0), v ? 0 : VMFAIL_VALID);
        if (!v)
            CHECK(vmread(IERR), 28);
        if (v) {
            CHECK_AT(k, invvpid(k, 0, 0), k == 2 ? 0 : VMFAIL_VALID);
            CHECK_AT(k, invvpid(k, 0x10001, 0), VMFAIL_VALID);
            CHECK_AT(k, invvpid(k, 1ull << 63 | 1, 0), VMFAIL_VALID);
            CHECK_AT(k, invvpid(k, 0xffff, 0), 0);
        }
        if (v && k == 0) {
            CHECK(invvpid(0, 1, 1ull << 48), VMFAIL_VALID);
            CHECK(invvpid(0, 1, ~0ull << 47), 0);
        }
    }
    CHECK(invept(1ull << 32 | 1, eptp, 0), VMFAIL_VALID);
    CHECK(invept(~0ull, eptp, 0), VMFAIL_VALID);
    CHECK(invept(1, eptp & ~0x38ull, 0), VMFAIL_VALID);
    CHECK(invept(1, eptp | 7, 0), VMFAIL_VALID);
    CHECK(invept(1, eptp | 1ull << width(), 0), VMFAIL_VALID);
    struct descriptor *d = (void *)0x7ff000;
    u64 *pte = pte_of((u64)d);
    *pte &= ~1ull;
    invlpg((u64)d);
    CHECK(FAULT(OUTCOME("invept %1, %2", "m"(*d), "r"(2ull))), PF);
    CHECK(FAULT(OUTCOME("invvpid %1, %2", "m"(*d), "r"(2ull))), PF);
    *pte |= 1;
    invlpg((u64)d);
    CHECK(FAULT(OUTCOME("invvpid (%1), %2", "r"(1ull << 60), "r"(2ull))), GP);
    vmx_disable();
}
static void read_tpr(void)
{
    shared_[0] = *(volatile u32 *)0xfee00080;
    *(volatile u32 *)0xfee00080 = 0x70;
    shared_[1] = *(volatile u32 *)0xfee00080;
    shared_[2] = READ_CR(8);
    WRITE_CR(8, 3);
    vmcall();
    WRITE_CR(8, 2);
    vmcall();
    shared_[3] = *(volatile u32 *)0xfee00020;
    vmcall();
}
static void write_far(void)
{
    *(volatile u32 *)0xfee00300 = 1;
    vmcall();
}
static void fetch_apic(void)
{ ((void (*)(void))0xfee00000)(); }
static void x2tpr(void)
{
    wrmsr(0x808, 0x55);
    shared_[0] = rdmsr(0x808);
    shared_[1] = READ_CR(8);
    vmcall();
}
TEST(virtual_apic)
{
    if (!offered(2))
        return;
    if (rdmsr(0x1b) & 0x400) {
        wrmsr(0x1b, rdmsr(0x1b) & ~0xc00ull);
        wrmsr(0x1b, rdmsr(0x1b) | 0x800);
    }
    vmx_enable();
    fresh(read_tpr);
    u8 *va = page(), *ap = page();
    if (!controls(PRI, 1 << 21, 1 << 19 | 1 << 20)) {
        vmx_disable();
        return;
    }
    u64 eptp = identity_ept(2);
    *ept_entry(eptp, 0xfee00000, 1) = (u64)ap | 0x37;
    controls(SEC, 2, 0);
    vmwrite(EPTP, eptp);
    invept(1, eptp, 0);
    vmwrite(VAPIC, (u64)va);
    if (controls(SEC, 1, 0)) {
        vmwrite(APICACC, (u64)ap);
        va[0x80] = 0x40;
        vmwrite(TPRTH, 3);
        CHECK(enter(), X_VMCALL);
        CHECK(shared_[0], 0x40);
        CHECK(shared_[1], 0x70);
        CHECK(shared_[2], 7);
        CHECK(va[0x80], 0x30);
        skip();
        int r = enter();
        CHECK(r, X_TPR);
        CHECK(va[0x80], 0x20);
        vmwrite(TPRTH, 0);
        CHECK(enter(), X_VMCALL);
        skip();
        r = enter();
        CHECK(r, X_APIC);
        CHECK(vmread(QUAL), 0x20);
        skip();
        CHECK(enter(), X_VMCALL);
        guest_is(write_far);
        CHECK(enter(), X_APIC);
        CHECK(vmread(QUAL), 0x1300);
        guest_is(fetch_apic);
        CHECK(enter(), X_APIC);
        CHECK(vmread(QUAL) & 0xf000, 0x2000);
        /* delivering an event that touches the page */
        guest_is(just_call);
        vmwrite(GRSP, 0xfee00800);
        set_gate(0x44, just_call, 0, 0);
        vmwrite(EINFO, VALID | 4 << 8 | 0x44);
        vmwrite(ELEN, 2);
        r = enter();
        CHECK(r, X_APIC);
        CHECK(vmread(QUAL) >> 12 & 15, 3);
        CHECK(vmread(IDTINFO), VALID | 4 << 8 | 0x44);
        set_gate(0x44, trap_stubs + 16 * 0x44, 0, 0);
    }
    fresh(x2tpr);
    vmwrite(VAPIC, (u64)va);
    controls(PRI, 1 << 21 | 1 << 28, 1 << 19 | 1 << 20);
    vmwrite(MSRBM, (u64)page());
    if (controls(SEC, 1 << 4, 0)) {
        CHECK(enter(), X_VMCALL);
        CHECK(shared_[0], 0x55);
        CHECK(shared_[1], 5);
        CHECK(va[0x80], 0x55);
    }
    vmx_disable();
}
