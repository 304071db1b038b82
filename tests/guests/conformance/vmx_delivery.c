/* Events whose delivery an EPT violation cuts short, IRET that faults, unrestricted guests (SDM 27.3, 27.6, 28.2). */
#include "vmx.h"

static void just_call(void)
{ vmcall(); }
static void nops(void)
{
    asm volatile("nop; nop; nop");
    vmcall();
}
static void do_int(void)
{
    asm volatile("int $0x44; nop");
    vmcall();
}
static void do_ud(void)
{
    asm volatile("ud2");
    vmcall();
}
static void do_icebp(void)
{
    asm volatile(".byte 0xf1");
    vmcall();
}
static u64 frame_for_iret[5];
static void do_iret(void)
{ asm volatile("mov %0, %%rsp; iretq" ::"r"(frame_for_iret)); }

static u64 eptp;
static void under_ept(void (*f)(void))
{
    fresh(f);
    controls(SEC, 2, 0);
    vmwrite(EPTP, eptp);
}
static void set_rights(u64 *entry, u64 rights)
{
    *entry = (*entry & ~7ull) | rights;
    invept(1, eptp, 0);
}

TEST(delivery)
{
    if (!offered(2))
        return;
    vmx_enable();
    eptp = identity_ept(2);
    fresh(just_call);
    u64 *idt = page(), *entry = ept_entry(eptp, (u64)idt, 1);
    memcpy(idt, (void *)vmread(HIDT), 4096);
    /* Injected: the exit says of the event what the entry said. */
    static const struct {
        u64 info, error, length;
    } events[] = {{0xe0, 0, 0},          {2 << 8 | 2, 0, 0}, {3 << 8 | 6, 0, 0}, {3 << 8 | 1 << 11 | 13, 0x1238, 0},
                  {4 << 8 | 0x44, 0, 2}, {5 << 8 | 1, 0, 1}, {6 << 8 | 3, 0, 1}};
    for (unsigned i = 0; i < sizeof events / sizeof *events; i++) {
        u64 info = VALID | events[i].info, vector = info & 0xff;
        set_rights(entry, 0);
        under_ept(nops);
        vmwrite(GIDT, (u64)idt);
        vmwrite(GFLAGS, 0x202);
        vmwrite(EINFO, info);
        vmwrite(EERR, events[i].error);
        vmwrite(ELEN, events[i].length);
        CHECK_AT(i, enter(), X_EPTV);
        CHECK_AT(i, vmread(IDTINFO), info);
        if (info & 1 << 11)
            CHECK_AT(i, vmread(IDTERR), events[i].error);
        if (events[i].length)
            CHECK_AT(i, vmread(XLEN), events[i].length);
        CHECK_AT(i, vmread(QUAL) & 0x1ff, 0x181);
        CHECK_AT(i, vmread(GPA), (u64)idt + 16 * vector);
        CHECK_AT(i, vmread(LINEAR), (u64)idt + 16 * vector);
        CHECK_AT(i, vmread(EINFO) >> 31, 0);
        CHECK_AT(i, vmread(INTRB), 0); /* also of an NMI: it has not been delivered */
        CHECK_AT(i, vmread(GRIP), (u64)nops);
        /* once more, as a hypervisor does */
        set_rights(entry, 7);
        set_gate((int)vector, just_call, 0, 3);
        memcpy(idt, (void *)vmread(HIDT), 4096);
        vmwrite(EINFO, vmread(IDTINFO));
        vmwrite(EERR, vmread(IDTERR));
        vmwrite(ELEN, vmread(XLEN));
        CHECK_AT(i, enter(), X_VMCALL);
        u64 *sp = (u64 *)vmread(GRSP);
        if (info & 1 << 11)
            CHECK_AT(i, *sp++, events[i].error);
        CHECK_AT(i, sp[0], (u64)nops + events[i].length);
        CHECK_AT(i, vmread(INTRB), vector == 2 ? 8 : 0);
        CHECK_AT(i, vmread(IDTINFO) >> 31, 0);
        set_gate((int)vector, trap_stubs + 16 * vector, 0, vector == 3 || vector == 4 ? 3 : 0);
        memcpy(idt, (void *)vmread(HIDT), 4096);
    }
    /* The guest's own. */
    static const struct {
        void (*f)(void);
        u64 info, length;
    } own[] = {{do_int, 4 << 8 | 0x44, 2}, {do_ud, 3 << 8 | 6, 0}, {do_icebp, 5 << 8 | 1, 1}};
    for (unsigned i = 0; i < sizeof own / sizeof *own; i++) {
        set_rights(entry, 0);
        under_ept(own[i].f);
        vmwrite(GIDT, (u64)idt);
        CHECK_AT(i, enter(), X_EPTV);
        CHECK_AT(i, vmread(IDTINFO), VALID | own[i].info);
        if (own[i].length)
            CHECK_AT(i, vmread(XLEN), own[i].length);
        CHECK_AT(i, vmread(GRIP) - (u64)own[i].f < 5, 1);
    }
    set_rights(entry, 7);
    /* IRET that ends blocking by (virtual) NMI before it faults. */
    u64 *e = ept_entry(eptp, (u64)frame_for_iret, 1);
    for (u64 virtual = 0; virtual < 2; virtual++) {
        under_ept(do_iret);
        if (virtual && !controls(PIN, 8 | 1 << 5, 0))
            break;
        set_rights(e, 0);
        vmwrite(INTRB, 8);
        CHECK_AT(virtual, enter(), X_EPTV);
        CHECK_AT(virtual, vmread(QUAL) & 0x1181, 0x1181);
        CHECK_AT(virtual, vmread(INTRB), 0);
        CHECK_AT(virtual, vmread(IDTINFO) >> 31, 0);
        set_rights(e, 7);
        /* the same with an exception: the new CS is null */
        vmwrite(INTRB, 8);
        vmwrite(EXCBM, 1 << GP);
        frame_for_iret[1] = 0;
        CHECK_AT(virtual, enter(), X_EXC);
        CHECK_AT(virtual, vmread(XINFO), VALID | 1 << 12 | 1 << 11 | 3 << 8 | GP);
        CHECK_AT(virtual, vmread(INTRB), 0);
        if (!virtual) /* what it does not unblock is not reported */
        {
            vmwrite(INTRB, 0);
            CHECK(enter(), X_EXC);
            CHECK(vmread(XINFO), VALID | 1 << 11 | 3 << 8 | GP);
        }
    }
    vmx_disable();
}

static void emulated(void)
{
    asm volatile("outb %%al, $0x80; nop; cpuid" ::"a"(0), "c"(0) : "rbx", "rdx");
    vmcall();
}
/* CR0 and CR4 of guests with and without unrestricted guest; steps over what the hypervisor below emulates. */
TEST(unrestricted)
{
    if (!offered(2))
        return;
    vmx_enable();
    eptp = identity_ept(2);
    u64 pg = 1ull << 31;
    for (u64 unrestricted = 0; unrestricted < 2; unrestricted++) {
        under_ept(just_call);
        if (unrestricted && !controls(SEC, 2 | 1 << 7, 0))
            break;
        u64 cr0 = vmread(GCR0);
        controls(ENTRYC, 0, 1 << 9 | 1 << 15); /* 32-bit: no EFER, no IA-32e mode */
        vmwrite(GAR + 2, 0xc09b);
        vmwrite(GCR0, cr0 & ~pg);
        CHECK_AT(unrestricted, enter(), unrestricted ? X_VMCALL : X_BADGUEST);
        guest_is(just_call);
        vmwrite(GCR0, cr0 & ~1ull); /* PG without PE */
        CHECK_AT(unrestricted, enter(), X_BADGUEST);
        vmwrite(GCR0, cr0 & ~(pg | 1));
        vmwrite(GAR + 2, 0x9b);
        vmwrite(GLIMIT + 2, 0xffff);
        vmwrite(GRIP, 0x100);
        *(u32 *)0x100 = 0xc1010f; /* VMCALL */
        CHECK_AT(unrestricted, enter(), unrestricted ? X_VMCALL : X_BADGUEST);
        if (!unrestricted)
            continue;
        CHECK(vmread(GCR0) & (pg | 1), 0);
        CHECK(vmread(XLEN), 3);
        /* real mode: SS.DPL is 0, CS may be data of type 3 */
        vmwrite(GAR + 2, 0x93);
        CHECK(enter(), X_VMCALL);
        vmwrite(GAR + 2, 0xf3);
        CHECK(enter(), X_BADGUEST);
        vmwrite(GAR + 2, 0x93);
        vmwrite(GAR + 4, 0xc0f3);
        CHECK(enter(), X_BADGUEST);
        vmwrite(GAR + 4, 0xc093);
        /* an injected exception has no error code there */
        vmwrite(EINFO, VALID | 1 << 11 | 3 << 8 | 13);
        CHECK(enter(), X_FAILED - 7);
        vmwrite(EINFO, VALID | 3 << 8 | 13);
        u8 *ivt = page();
        *(u32 *)(ivt + 4 * 13) = 0x100;
        vmwrite(GIDT, (u64)ivt);
        vmwrite(GRSP, 0x800);
        CHECK(enter(), X_VMCALL);
        CHECK(vmread(GRSP), 0x800 - 6);
        vmwrite(EINFO, 0);
        /* without unrestricted guest the control field is what fails */
        vmwrite(SEC, vmread(SEC) & ~2ull);
        CHECK(enter(), X_FAILED - 7);
    }
    fresh(emulated);
    if (controls(PRI, 1 << 27, 1 << 24)) {
        u64 at = (u64)emulated;
        while (*(u8 *)at != 0xe6)
            at++;
        vmwrite(GRIP, at);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), at + 2);
        CHECK(vmread(GPDBG), 0);
        vmwrite(GRIP, at);
        vmwrite(GFLAGS, 0x102);
        vmwrite(EXCBM, 2);
        CHECK(enter(), X_MTF);
        CHECK(vmread(GRIP), at + 2);
        CHECK(vmread(GPDBG), 0x4000);
        CHECK(vmread(EINFO) >> 31, 0);
        controls(PRI, 0, 1 << 27);
        CHECK(enter(), X_EXC);
        CHECK(vmread(QUAL), 0x4000);
        CHECK(vmread(GRIP), at + 2);
    }
    vmx_disable();
}
