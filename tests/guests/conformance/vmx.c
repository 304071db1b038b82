/* VMX for the conformance guest: set-up, entry, a fresh VMCS for each test. */
#include "vmx.h"

struct regs gr;
u64 *vmxon_area, *vmcs;
u32 revision;
int launched;
volatile u64 shared_[8];
static u8 *guest_stack;
extern u64 gdt_pointer[];

static void finish(void)
{
    for (;;)
        asm volatile("vmcall");
}

void vmx_enable(void)
{
    if (!(rdmsr(0x3a) & 1))
        wrmsr(0x3a, 5);
    if (!vmxon_area) {
        vmxon_area = page();
        guest_stack = (u8 *)page() + 4096 + 0 * (u64)page();
        page();
    }
    WRITE_CR(0, (READ_CR(0) | rdmsr(0x486)) & rdmsr(0x487));
    WRITE_CR(4, (READ_CR(4) | rdmsr(0x488)) & rdmsr(0x489));
    revision = (u32)rdmsr(0x480);
    *(u32 *)vmxon_area = revision;
    vmxon((u64)vmxon_area);
}
void vmx_disable(void)
{
    vmxoff();
    WRITE_CR(4, READ_CR(4) & ~0x2000ull);
}

int controls(u64 field, u32 set, u32 clear)
{
    static const u32 msrs[] = {[PIN - 0x4000] = 0x48d,
                               [PRI - 0x4000] = 0x48e,
                               [EXITC - 0x4000] = 0x48f,
                               [ENTRYC - 0x4000] = 0x490,
                               [SEC - 0x4000] = 0x48b};
    u64 c = rdmsr(msrs[field - 0x4000]);
    u32 v = (u32)vmread(field);
    if (field == SEC && set) {
        if (!controls(PRI, 1u << 31, 0))
            return 0;
    }
    v = (v | set) & ~clear;
    vmwrite(field, (v | (u32)c) & (u32)(c >> 32));
    return !(set & ~(u32)(c >> 32)) && !(clear & (u32)c);
}

void guest_is(void (*guest)(void))
{
    u64 *sp = (u64 *)(guest_stack - 64);
    *--sp = (u64)finish;
    vmwrite(GRSP, (u64)sp);
    vmwrite(GRIP, (u64)guest);
    vmwrite(GFLAGS, 2);
}

void fresh(void (*guest)(void))
{
    vmcs = vmcs ? vmcs : page();
    memset(vmcs, 0, 4096);
    *(u32 *)vmcs = revision;
    vmclear((u64)vmcs);
    vmptrld((u64)vmcs);
    launched = 0;
    memset(&gr, 0, sizeof gr);
    static const u16 zero32[] = {0x4004, 0x4006, 0x4008, 0x400a, 0x400e, 0x4010, 0x4014, 0x4016,
                                 0x4018, 0x401a, 0x401c, 0x482a, 0x4c00, 0x4824, 0x4826};
    for (unsigned i = 0; i < sizeof zero32 / 2; i++)
        vmwrite(zero32[i], 0);
    vmwrite(PIN, 0);
    vmwrite(PRI, 0);
    vmwrite(SEC, 0);
    vmwrite(EXITC, 0);
    vmwrite(ENTRYC, 0);
    controls(PIN, 0, 0);
    controls(PRI, 0, 1u << 15 | 1u << 16);
    controls(EXITC, 1u << 9 | 1u << 20 | 1u << 21, 0);
    controls(ENTRYC, 1u << 9 | 1u << 15, 0);
    static const u16 zerox[] = {0x2010, 0x6000, 0x6002, 0x6004, 0x6006, 0x6822, 0x6824,
                                0x6826, 0x6c06, 0x6c08, 0x6c10, 0x6c12, 0x2802};
    for (unsigned i = 0; i < sizeof zerox / 2; i++)
        vmwrite(zerox[i], 0);
    vmwrite(LINK, ~0ull);
    for (int i = 0; i < 8; i++) {
        vmwrite(GBASE + 2 * i, 0);
        vmwrite(GLIMIT + 2 * i, ~0u);
        vmwrite(GAR + 2 * i, 0xc093);
        vmwrite(GSEL + 2 * i, 16);
    }
    vmwrite(GCS, 8);
    vmwrite(GAR + 2, 0xa09b);
    vmwrite(GLDTR, 0);
    vmwrite(GAR + 12, 0x82);
    vmwrite(GLIMIT + 12, 0xffff);
    vmwrite(GTR, 0x58);
    vmwrite(GAR + 14, 0x8b);
    vmwrite(GLIMIT + 14, 0x67);
    vmwrite(GBASE + 14, (u64)tss);
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) t;
    asm volatile("sgdt %0" : "=m"(t));
    vmwrite(GGDT, t.base);
    vmwrite(0x4810, t.limit);
    vmwrite(HGDT, t.base);
    asm volatile("sidt %0" : "=m"(t));
    vmwrite(GIDT, t.base);
    vmwrite(0x4812, t.limit);
    vmwrite(HIDT, t.base);
    vmwrite(GCR0, READ_CR(0));
    vmwrite(GCR3, READ_CR(3));
    vmwrite(GCR4, READ_CR(4));
    vmwrite(HCR0, READ_CR(0));
    vmwrite(HCR3, READ_CR(3));
    vmwrite(HCR4, READ_CR(4));
    vmwrite(GDR7, 0x400);
    vmwrite(GEFER, rdmsr(0xc0000080));
    vmwrite(HEFER, rdmsr(0xc0000080));
    vmwrite(GPAT, rdmsr(0x277));
    vmwrite(HPAT, rdmsr(0x277));
    for (int i = HES; i < HTR; i += 2)
        vmwrite(i, 16);
    vmwrite(HCS, 8);
    vmwrite(HTR, 0x58);
    vmwrite(HTRB, (u64)tss);
    vmwrite(HRIP, (u64)vm_exited);
    guest_is(guest);
}

int enter(void)
{
    int bad = vm_run(&gr, launched);
    if (bad)
        return X_FAILED - (int)(bad & 1 ? 0x1000 : vmread(IERR));
    u64 reason = vmread(REASON);
    if (!(reason >> 31))
        launched = 1;
    return (int)(reason & 0xffff);
}
void skip(void)
{ vmwrite(GRIP, vmread(GRIP) + vmread(XLEN)); }

u64 identity_ept(int level)
{
    u64 *root = page(), *t3 = page();
    root[0] = (u64)t3 | 7;
    for (u64 g = 0; g < 4; g++) {
        if (level == 3) {
            t3[g] = g << 30 | 0xb7;
            continue;
        }
        u64 *t2 = page();
        t3[g] = (u64)t2 | 7;
        for (u64 i = 0; i < 512; i++)
            t2[i] = g << 30 | i << 21 | 0xb7;
    }
    return (u64)root | 0x1e;
}

u64 *ept_entry(u64 eptp, u64 gpa, int level)
{
    u64 *e = (u64 *)(eptp & ~0xfffull) + (gpa >> 39 & 511);
    for (int l = 3; l >= level; l--) {
        if (*e & 0x80 && l < 3) {
            u64 *t = page(), step = l == 2 ? 1ull << 21 : 4096;
            for (u64 i = 0; i < 512; i++)
                t[i] = ((*e & ~0x80ull) + i * step) | (l == 2 ? 0x80 : 0);
            *e = (u64)t | 7;
        }
        e = (u64 *)(*e & 0x000ffffffffff000ull) + (gpa >> (12 + 9 * (l - 1)) & 511);
    }
    return e;
}
