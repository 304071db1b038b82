/* Checks of VM entry on controls, host state and guest state (SDM 27.2, 27.3). */
#include "vmx.h"
#define CONTROLS (X_FAILED - 7)
#define HOST (X_FAILED - 8)
static void just_call(void)
{ vmcall(); }
static int try(u64 field, u64 value)
{
    u64 old = vmread(field);
    vmwrite(field, value);
    int r = enter();
    vmwrite(field, old);
    if (r == X_VMCALL)
        guest_is(just_call);
    return r;
}
#define TRY(field, value, outcome) CHECK_AT(value, try(field, value), outcome)
static int width(void)
{
    u32 r[4];
    cpuid(0x80000008, 0, r);
    return (int)(r[0] & 0xff);
}
static int with(u64 field, u32 bit, u64 address_field, u64 address)
{
    u64 old = vmread(field), sec = vmread(PRI);
    int can = controls(field, bit, 0);
    int r = -99;
    if (can)
        r = try(address_field, address);
    vmwrite(field, old);
    vmwrite(PRI, sec);
    return r;
}
static void addresses(u64 field, u32 bit, u64 address_field, u64 align)
{
    if (with(field, bit, address_field, 0x600000) == -99)
        return;
    for (u64 a = 1; a < align; a <<= 1)
        CHECK_AT(address_field << 12 | a, with(field, bit, address_field, 0x600000 | a), CONTROLS);
    for (int b = width(); b < 64; b++)
        CHECK_AT(address_field << 12 | (u64)b, with(field, bit, address_field, 0x600000 | 1ull << b), CONTROLS);
    CHECK_AT(address_field, with(field, bit, address_field, 0x600000), X_VMCALL);
}
static void checks_ept(void)
{
    u64 eptp = identity_ept(2);
    controls(SEC, 2, 0);
    vmwrite(EPTP, eptp);
    u64 cap = rdmsr(0x48c);
    for (u64 t = 0; t < 8; t++)
        TRY(EPTP, (eptp & ~7ull) | t,
            t == 6 && cap >> 14 & 1  ? X_VMCALL
            : t == 0 && cap >> 8 & 1 ? X_VMCALL
                                     : CONTROLS);
    for (u64 l = 0; l < 8; l++)
        TRY(EPTP, (eptp & ~0x38ull) | l << 3, l == 3 ? X_VMCALL : CONTROLS);
    TRY(EPTP, eptp | 0x40, cap >> 21 & 1 ? X_VMCALL : CONTROLS);
    for (int b = 7; b < 12; b++)
        TRY(EPTP, eptp | 1ull << b, CONTROLS);
    for (int b = width(); b < 64; b++)
        TRY(EPTP, eptp | 1ull << b, CONTROLS);
    controls(SEC, 0, 2);
    controls(SEC, 1 << 7, 0);
    TRY(EPTP, eptp, CONTROLS);
    vmwrite(SEC, 0);
    controls(PRI, 0, 1u << 31);
}

TEST(checks_controls)
{
    vmx_enable();
    fresh(just_call);
    static const struct {
        u64 field;
        u32 msr;
    } all[] = {{PIN, 0x48d}, {PRI, 0x48e}, {EXITC, 0x48f}, {ENTRYC, 0x490}};
    for (int i = 0; i < 4; i++) {
        u64 c = rdmsr(all[i].msr), now = vmread(all[i].field);
        for (int b = 0; b < 32; b++) {
            if (!(c >> 32 >> b & 1))
                TRY(all[i].field, now | 1ull << b, CONTROLS);
            if (c >> b & 1)
                TRY(all[i].field, now & ~(1ull << b), CONTROLS);
        }
    }
    controls(SEC, 0, 0);
    controls(PRI, 1u << 31, 0);
    u64 c = rdmsr(0x48b);
    for (int b = 0; b < 32; b++)
        if (!(c >> 32 >> b & 1))
            TRY(SEC, 1ull << b, CONTROLS);
    controls(PRI, 0, 1u << 31);
    TRY(SEC, ~0u, X_VMCALL); /* ignored without the control */
    for (u64 n = 0; n < 8; n++)
        TRY(CR3COUNT, n, n <= (rdmsr(0x485) >> 16 & 0x1ff) ? X_VMCALL : CONTROLS);
    addresses(PRI, 1 << 25, IO_A, 4096);
    addresses(PRI, 1 << 25, IO_B, 4096);
    addresses(PRI, 1 << 28, MSRBM, 4096);
    addresses(PRI, 1 << 21, VAPIC, 4096);
    addresses(SEC, 1, APICACC, 4096);
    addresses(SEC, 1 << 14, 0x2026, 4096);
    addresses(SEC, 1 << 14, 0x2028, 4096);
    if (controls(PRI, 1 << 21, 0)) {
        u8 *va = page();
        vmwrite(VAPIC, (u64)va);
        for (u64 t = 0; t < 32; t++)
            TRY(TPRTH, 1ull << t, t < 4 ? (va[0x80] >> 4 < (1 << t) ? CONTROLS : X_VMCALL) : CONTROLS);
        va[0x80] = 0x80;
        TRY(TPRTH, 8, X_VMCALL);
        TRY(TPRTH, 9, CONTROLS);
        controls(PRI, 0, 1 << 21);
        TRY(TPRTH, ~0u, X_VMCALL);
        u64 pri = vmread(PRI);
        controls(SEC, 1 << 4, 0);
        TRY(TPRTH, 0, CONTROLS);
        vmwrite(PRI, pri); /* x2APIC mode needs a TPR shadow */
        if (controls(SEC, 1 << 8, 0))
            TRY(TPRTH, 0, CONTROLS);
        vmwrite(PRI, pri);
        if (controls(SEC, 1 << 9, 0))
            TRY(TPRTH, 0, CONTROLS);
        vmwrite(PRI, pri | 1 << 21 | 1u << 31);
        va[0x80] = 0;
        vmwrite(SEC, 1 << 0 | 1 << 4);
        TRY(APICACC, 0x600000, CONTROLS);
        vmwrite(PRI, pri);
        vmwrite(SEC, 0);
    }
    controls(SEC, 1 << 5, 0);
    TRY(VPID, 0, CONTROLS);
    TRY(VPID, 5, X_VMCALL);
    vmwrite(SEC, 0);
    controls(PRI, 0, 1u << 31);
    if (offered(2))
        checks_ept();
    vmwrite(SEC, 0);
    controls(PRI, 0, 1u << 31);
    /* NMI controls */
    u64 pin = vmread(PIN);
    vmwrite(PIN, pin | 1 << 5);
    TRY(PRI, vmread(PRI), CONTROLS);
    vmwrite(PIN, pin);
    TRY(PRI, vmread(PRI) | 1 << 22, CONTROLS);
    controls(EXITC, 1 << 22, 0);
    TRY(PIN, pin & ~0x40ull, CONTROLS);
    controls(EXITC, 0, 1 << 22);
    /* event injection */
    static const struct {
        u64 info, error, length;
        int want;
    } events[] = {{VALID | 1 << 8, 0, 0, CONTROLS},
                  {VALID | 7 << 8, 0, 0, X_MTF},
                  {VALID | 7 << 8 | 1, 0, 0, CONTROLS},
                  {VALID | 2 << 8 | 2 | 1 << 12, 0, 0, CONTROLS},
                  {VALID | 2 << 8 | 3, 0, 0, CONTROLS},
                  {VALID | 3 << 8 | 32, 0, 0, CONTROLS},
                  {VALID | 3 << 8 | 13, 0, 0, CONTROLS},
                  {VALID | 3 << 8 | 13 | 1 << 11, 0x8000, 0, CONTROLS + 0},
                  {VALID | 3 << 8 | 13 | 1 << 11, 1u << 16, 0, CONTROLS},
                  {VALID | 3 << 8 | 6 | 1 << 11, 0, 0, CONTROLS},
                  {VALID | 0 << 8 | 0xe0 | 1 << 11, 0, 0, CONTROLS},
                  {VALID | 4 << 8 | 0x44 | 1 << 11, 0, 2, CONTROLS},
                  {VALID | 4 << 8 | 0x44, 0, 16, CONTROLS},
                  {VALID | 6 << 8 | 3, 0, 16, CONTROLS},
                  {VALID | 5 << 8 | 1, 0, 16, CONTROLS},
                  {VALID | 6 << 8 | 3, 0, 0, CONTROLS + 0},
                  {VALID | 3 << 8 | 13 | 1 << 11 | 1 << 13, 0, 0, CONTROLS},
                  {VALID | 3 << 8 | 13 | 1 << 11 | 1 << 30, 0, 0, CONTROLS},
                  {1 << 8, 0, 0, X_VMCALL}};
    for (unsigned i = 0; i < sizeof events / sizeof *events; i++) {
        if (i == 7)
            continue;
        if (i == 15 && rdmsr(0x485) >> 30 & 1)
            continue; /* length 0 may be injected */
        vmwrite(EERR, events[i].error);
        vmwrite(ELEN, events[i].length);
        CHECK_AT(i, try(EINFO, events[i].info), events[i].want);
        guest_is(just_call);
        vmwrite(EINFO, 0);
    }
    vmwrite(EERR, 0);
    vmwrite(ELEN, 0);
    /* MSR areas */
    static const u32 areas[][2] = {{ENTRY_LD, ENTRY_LDN}, {EXIT_LD, EXIT_LDN}, {EXIT_ST, EXIT_STN}};
    for (int i = 0; i < 3; i++) {
        vmwrite(areas[i][0], 0x600001);
        TRY(areas[i][1], 0, X_VMCALL);
        for (u64 a = 1; a < 16; a <<= 1) {
            vmwrite(areas[i][0], 0x600000 | a);
            TRY(areas[i][1], 1, CONTROLS);
        }
        for (int b = width(); b < 64; b++) {
            vmwrite(areas[i][0], 0x600000 | 1ull << b);
            TRY(areas[i][1], 1, CONTROLS);
        }
        vmwrite(areas[i][0], (1ull << width()) - 16);
        TRY(areas[i][1], 2, CONTROLS);
        vmwrite(areas[i][0], 0);
    }
    vmx_disable();
}
TEST(checks_host)
{
    vmx_enable();
    fresh(just_call);
    for (int b = 0; b < 64; b++) {
        u64 f0 = rdmsr(0x486), f1 = rdmsr(0x487), v = vmread(HCR0) ^ 1ull << b;
        if ((v & f1) != v || (v & f0) != f0)
            TRY(HCR0, v, HOST);
        f0 = rdmsr(0x488);
        f1 = rdmsr(0x489);
        v = vmread(HCR4) ^ 1ull << b;
        if ((v & f1) != v || (v & f0) != f0)
            TRY(HCR4, v, HOST);
        if (b >= width())
            TRY(HCR3, vmread(HCR3) | 1ull << b, HOST);
    }
    TRY(HCR4, vmread(HCR4) & ~0x20ull, HOST);
    for (u64 t = 0; t < 8; t++) {
        u64 ok = t < 2 || t >= 4;
        controls(EXITC, 1 << 19, 0);
        u64 pat = 0x0007040600070406ull;
        (void)pat;
        for (int i = 0; i < 8; i++)
            TRY(HPAT, (vmread(HPAT) & ~(0xffull << 8 * i)) | t << 8 * i, ok ? X_VMCALL : HOST);
        wrmsr(0x277, 0x0007040600070406ull);
    }
    TRY(HPAT, 8, HOST);
    controls(EXITC, 0, 1 << 19);
    TRY(HPAT, 8, X_VMCALL);
    u64 e = vmread(HEFER);
    TRY(HEFER, e & ~0x400ull, HOST);
    TRY(HEFER, e & ~0x100ull, HOST);
    TRY(HEFER, e | 2, HOST);
    TRY(HEFER, e | 1ull << 40, HOST);
    TRY(HEFER, e & ~0x500ull, HOST);
    for (u64 f = HES; f <= HTR; f += 2) {
        for (int b = 0; b < 3; b++)
            TRY(f, vmread(f) | 1ull << b, HOST);
    }
    TRY(HCS, 0, HOST);
    TRY(HTR, 0, HOST);
    TRY(HSS, 0, X_VMCALL);
    TRY(HDS, 0, X_VMCALL);
    asm volatile("mov %0, %%ss; mov %0, %%ds" ::"r"(16));
    static const u32 canon[] = {HFSB, HGSB, HGDT, HIDT, HTRB, HSYSESP, HSYSEIP, HRIP};
    for (int i = 0; i < 8; i++) {
        TRY(canon[i], 1ull << 47, HOST);
        TRY(canon[i], 1ull << 63, HOST);
    }
    controls(EXITC, 0, 0);
    u64 x = vmread(EXITC);
    TRY(EXITC, x & ~(1ull << 9), HOST);
    vmx_disable();
}
static int bad(u64 field, u64 value)
{
    u64 old = vmread(field);
    vmwrite(field, value);
    int r = enter();
    int q = (int)vmread(QUAL);
    vmwrite(field, old);
    if (r == X_VMCALL) {
        guest_is(just_call);
        return 0;
    }
    return r == X_BADGUEST ? (q ? q << 8 : 1) : r;
}
#define BADG(field, value, outcome) CHECK_AT(value, bad(field, value), outcome)
TEST(checks_guest)
{
    vmx_enable();
    fresh(just_call);
    controls(ENTRYC, 4, 0);
    BADG(GCR0, vmread(GCR0) & ~0x20ull, 1);
    BADG(GCR0, vmread(GCR0) & ~1ull, 1);
    BADG(GCR0, vmread(GCR0) | 1ull << 32, 1);
    BADG(GCR0, vmread(GCR0) ^ 0x60000000, 0);
    BADG(GCR4, vmread(GCR4) & ~0x2000ull, 1);
    BADG(GCR4, vmread(GCR4) & ~0x20ull, 1);
    BADG(GCR4, vmread(GCR4) | 1ull << 31, 1);
    BADG(GCR3, vmread(GCR3) | 1ull << width(), 1);
    BADG(GDR7, 1ull << 32, 1);
    BADG(GDEBUGCTL, 1ull << 20, 1);
    BADG(GSYSESP, 1ull << 60, 1);
    BADG(GSYSEIP, 1ull << 47, 1);
    controls(ENTRYC, 1 << 14, 0);
    BADG(GPAT, 2, 1);
    BADG(GPAT, 3, 1);
    BADG(GPAT, 8ull << 56, 1);
    controls(ENTRYC, 0, 1 << 14);
    u64 e = vmread(GEFER);
    BADG(GEFER, e & ~0x400ull, 1);
    BADG(GEFER, e & ~0x100ull, 1);
    BADG(GEFER, e | 2, 1);
    CHECK(bad(ENTRYC, vmread(ENTRYC) & ~0x200ull) != 0, 1);
    /* RIP, RFLAGS */
    BADG(GFLAGS, 0, 1);
    BADG(GFLAGS, 2 | 8, 1);
    BADG(GFLAGS, 2 | 1 << 22, 1);
    BADG(GFLAGS, 2 | 1 << 17, 1);
    BADG(GFLAGS, 2 | 1 << 15, 1);
    BADG(GRIP, 1ull << 48, 1);
    /* segments */
    BADG(GTR, 0x5c, 1);
    BADG(GCS, 9, 1);
    BADG(GSS, 17, 1);
    BADG(GAR + 2, 0xa093, 1);
    BADG(GAR + 2, 0xa01b, 1);
    BADG(GAR + 2, 0xe09b, 1);
    BADG(GAR + 2, 0xa08b, 1);
    BADG(GAR + 2, 0xa19b, 1);
    BADG(GAR + 2, 0xa0fb, 1);
    BADG(GAR + 4, 0xc09b, 1);
    BADG(GAR + 4, 0xc0f3, 1);
    BADG(GAR + 4, 0xc092, 1);
    BADG(GAR + 4, 0x1c093, 0);
    BADG(GAR + 6, 0xc09b, 0);
    BADG(GAR + 6, 0xc099, 1);
    BADG(GAR + 6, 0xc092, 1);
    BADG(GAR + 6, 0x4093, 1);
    BADG(GAR + 6, 0xc193, 1);
    BADG(GLIMIT + 6, 0xfffffffe, 1);
    BADG(GLIMIT + 6, 0xfff, 0);
    BADG(GBASE + 2, 1ull << 32, 1);
    BADG(GBASE + 4, 1ull << 32, 1);
    BADG(GBASE + 6, 1ull << 32, 1);
    BADG(GBASE + 8, 1ull << 47, 1);
    BADG(GBASE + 10, 1ull << 62, 1);
    BADG(GBASE + 14, 1ull << 48, 1);
    BADG(GBASE + 8, 1ull << 40, 0);
    BADG(GAR + 14, 0x89, 1);
    BADG(GAR + 14, 0x83, 1);
    BADG(GAR + 14, 0x1008b, 1);
    BADG(GAR + 14, 0x9b, 1);
    BADG(GAR + 14, 0x0b, 1);
    BADG(GAR + 14, 0x808b, 1);
    BADG(GLDTR, 4, 1);
    BADG(GAR + 12, 0x83, 1);
    BADG(GAR + 12, 0x02, 1);
    BADG(GAR + 12, 0x10000, 0);
    BADG(GAR + 12, 0x8082, 0);
    BADG(GAR + 12, 0x92, 1);
    BADG(GBASE + 12, 1ull << 50, 1);
    BADG(GGDT, 1ull << 50, 1);
    BADG(GIDT, 1ull << 50, 1);
    BADG(0x4810, 0x10000, 1);
    BADG(0x4812, 0x10000, 1);
    /* activity, interruptibility, pending debug exceptions */
    BADG(ACTV, 4, 1);
    BADG(ACTV, 100, 1);
    BADG(INTRB, 3, 1);
    BADG(INTRB, 1, 1);
    BADG(INTRB, 4, 1);
    BADG(INTRB, 0x20, 1);
    BADG(INTRB, 2, 0);
    vmwrite(INTRB, 2);
    BADG(ACTV, 1, 1);
    vmwrite(INTRB, 0);
    vmwrite(EINFO, VALID | 0xe0);
    BADG(GFLAGS, 2, 1);
    vmwrite(GFLAGS, 0x202);
    vmwrite(INTRB, 2);
    BADG(ACTV, 0, 1);
    vmwrite(INTRB, 1);
    BADG(ACTV, 0, 1);
    vmwrite(INTRB, 0);
    vmwrite(EINFO, 0);
    vmwrite(EINFO, VALID | 2 << 8 | 2);
    vmwrite(INTRB, 2);
    CHECK(bad(ACTV, 0) != 0, 1);
    vmwrite(INTRB, 0);
    vmwrite(EINFO, 0);
    vmwrite(GFLAGS, 2);
    vmwrite(EINFO, VALID | 3 << 8 | 6);
    BADG(ACTV, 1, 1);
    vmwrite(EINFO, 0);
    guest_is(just_call);
    BADG(GPDBG, 1 << 4, 1);
    BADG(GPDBG, 1ull << 13, 1);
    BADG(GPDBG, 1ull << 15, 1);
    BADG(GPDBG, 1ull << 32, 1);
    vmwrite(INTRB, 2);
    vmwrite(GFLAGS, 0x102);
    BADG(GPDBG, 0, 1);
    vmwrite(GFLAGS, 2);
    BADG(GPDBG, 0x4000, 1);
    vmwrite(INTRB, 0);
    BADG(LINK, 1, 4 << 8);
    BADG(LINK, 1ull << width(), 4 << 8);
    BADG(LINK, 0x600000, 4 << 8);
    CHECK(enter(), X_VMCALL);
    vmx_disable();
}
