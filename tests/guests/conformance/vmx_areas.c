/* MSR areas, and the order in which an entry's checks are made (SDM 27.1 to 27.4, 28.4). */
#include "vmx.h"

static void just_call(void)
{ vmcall(); }
static void stamp(void)
{
    shared_[0] = rdtsc();
    vmcall();
}
/* What the VM-exit MSR-store area gets for an MSR. */
static u64 stored(u64 msr)
{
    u64 *st = page();
    st[0] = msr;
    st[1] = 0xdead;
    vmwrite(EXIT_ST, (u64)st);
    vmwrite(EXIT_STN, 1);
    guest_is(just_call);
    CHECK_AT(msr, enter(), X_VMCALL);
    vmwrite(EXIT_STN, 0);
    return st[1];
}
TEST(areas)
{
    vmx_enable();
    fresh(just_call);
    /* guest values of what an exit replaces; FS and GS base may be stored, though not loaded */
    vmwrite(GBASE + 8, 0x123456789000ull);
    CHECK(stored(0xc0000100), 0x123456789000ull);
    vmwrite(GBASE + 10, 0xffff800000001000ull);
    CHECK(stored(0xc0000101), 0xffff800000001000ull);
    vmwrite(GSYSEIP, 0x7654);
    CHECK(stored(0x176), 0x7654);
    static const u32 same[] = {0x17,  0x1b,  0x3a,  0x3b,  0xfe,  0x179, 0x17a, 0x1a0, 0x200,
                               0x201, 0x250, 0x258, 0x26f, 0x277, 0x2ff, 0x480, 0x485, 0xc0000081};
    for (unsigned i = 0; i < sizeof same / sizeof *same; i++)
        CHECK_AT(same[i], stored(same[i]), rdmsr(same[i]));
    /* The time-stamp counter is stored without the offset and the multiplier with which the guest reads it. */
    for (int i = 0; i < 3; i++) {
        fresh(stamp);
        controls(PRI, 8, 1 << 12);
        vmwrite(TSCOFF, 1ull << 50);
        if (i && !controls(SEC, 1 << 25, 0))
            break;
        if (i)
            vmwrite(TSCMUL, i == 1 ? 3ull << 48 : 1ull << 47);
        u64 *st = page(), before = rdtsc();
        st[0] = 0x10;
        vmwrite(EXIT_ST, (u64)st);
        vmwrite(EXIT_STN, 1);
        CHECK(enter(), X_VMCALL);
        CHECK_AT(i, st[1] >= before, 1);
        CHECK_AT(i, st[1] <= rdtsc(), 1);
        u64 then = i == 1 ? st[1] * 3 : i == 2 ? st[1] / 2 : st[1];
        CHECK_AT(i, shared_[0] <= then + (1ull << 50), 1);
    }
    vmx_disable();
}

TEST(order)
{
    vmx_enable();
    u64 *en = page();
    en[0] = 0xc0000102;
    en[1] = 0x1111;
    en[2] = 0x12345678;
    wrmsr(0xc0000102, 0);
    fresh(just_call);
    vmwrite(ENTRY_LD, (u64)en);
    vmwrite(ENTRY_LDN, 2);
    CHECK(enter(), X_BADMSR);
    CHECK(rdmsr(0xc0000102), 0x1111);
    wrmsr(0xc0000102, 0);
    /* guest state comes before MSRs, all of which stay then, */
    vmwrite(GFLAGS, 0);
    CHECK(enter(), X_BADGUEST);
    CHECK(vmread(QUAL), 0);
    CHECK(rdmsr(0xc0000102), 0);
    vmwrite(LINK, 0x600000);
    CHECK(enter(), X_BADGUEST);
    CHECK(vmread(QUAL), 0); /* RFLAGS before the link pointer */
    vmwrite(GFLAGS, 2);
    CHECK(enter(), X_BADGUEST);
    CHECK(vmread(QUAL), 4);
    /* controls before guest state: an event of the reserved type, */
    vmwrite(EINFO, VALID | 1 << 8);
    CHECK(enter(), X_FAILED - 7);
    CHECK(vmread(EINFO), VALID | 1 << 8);
    vmwrite(EINFO, 0);
    /* host state too, */
    u64 host = vmread(HCR4);
    vmwrite(HCR4, host & ~0x2000ull);
    CHECK(enter(), X_FAILED - 8);
    /* controls before host state, */
    vmwrite(CR3COUNT, 5);
    CHECK(enter(), X_FAILED - 7);
    /* and the launch state before all. */
    launched = 1;
    CHECK(enter(), X_FAILED - 5);
    launched = 0;
    vmwrite(CR3COUNT, 0);
    vmwrite(HCR4, host);
    vmwrite(LINK, ~0ull);
    vmwrite(ENTRY_LDN, 0);
    CHECK(enter(), X_VMCALL);
    /* An NMI under blocking by MOV SS: no qualification of its own (3 is blocking by STI's). */
    guest_is(just_call);
    vmwrite(EINFO, VALID | 2 << 8 | 2);
    vmwrite(INTRB, 2);
    CHECK(enter(), X_BADGUEST);
    CHECK(vmread(QUAL), 0);
    CHECK(vmread(EINFO), VALID | 2 << 8 | 2); /* a failed entry clears nothing */
    vmwrite(EINFO, 0);
    vmwrite(INTRB, 0);
    /* IA-32e mode has 64-bit host address space (SDM 27.2.4), also for a 32-bit guest. */
    fresh(just_call);
    controls(ENTRYC, 0, 1 << 9 | 1 << 15);
    controls(EXITC, 0, 1 << 9 | 1 << 20 | 1 << 21);
    vmwrite(GAR + 2, 0xc09b);
    CHECK(enter(), X_FAILED - 8);
    controls(EXITC, 1 << 9, 0);
    CHECK(enter(), X_BADGUEST); /* PAE paging now: the PML4 table has no valid PDPTEs */
    CHECK(vmread(QUAL), 2);
    vmx_disable();
}

/* --- VMCS shadowing (SDM 25.10, 31.2): what an access without an exit reports, and where --- */
static volatile u64 encoding, read_flags_, write_flags_, read_value;
static void access_field(void)
{
    u64 value = 0, outcome;
    asm volatile("pushq $2; popfq; vmwrite %2, %1; pushfq; popq %0"
                 : "=&r"(outcome)
                 : "r"(encoding), "r"(0x42ull)
                 : "cc");
    write_flags_ = outcome & 0x8d5;
    asm volatile("pushq $2; popfq; vmread %2, %1; pushfq; popq %0"
                 : "=&r"(outcome), "+&r"(value)
                 : "r"(encoding)
                 : "cc");
    read_flags_ = outcome & 0x8d5;
    read_value = value;
    vmcall();
}
TEST(shadowing)
{
    if (!offered(1 << 14))
        return;
    vmx_enable();
    u64 *shadow = page(), *reads = page(), *writes = page();
    *(u32 *)shadow = revision | 1u << 31;
    CHECK(vmclear((u64)shadow), 0);
    for (int linked = 0; linked < 2; linked++) {
        static const u32 fields[] = {GRIP, GCS, IO_A, 0x2001, EINFO, 0x7ffe, 0x4600, 0x6e00};
        for (unsigned i = 0; i < sizeof fields / sizeof *fields; i++) {
            int exists = i < 5;
            fresh(access_field);
            controls(SEC, 1 << 14, 0);
            vmwrite(0x2026, (u64)reads);
            vmwrite(0x2028, (u64)writes);
            vmwrite(LINK, linked ? (u64)shadow : ~0ull);
            vmwrite(IERR, 0);
            encoding = fields[i];
            CHECK_AT(fields[i], enter(), X_VMCALL);
            u64 wanted = !linked ? VMFAIL_INVALID : exists ? 0 : VMFAIL_VALID;
            CHECK_AT(fields[i], write_flags_, wanted);
            CHECK_AT(fields[i], read_flags_, wanted);
            CHECK_AT(fields[i], read_value, wanted ? 0 : 0x42);
            /* the number is the current VMCS's, which is not the shadow */
            CHECK_AT(fields[i], vmread(IERR), wanted == VMFAIL_VALID ? 12 : 0);
            CHECK_AT(fields[i], vmread(GRIP) - (u64)access_field < 200, 1);
            /* an access that exits reports the same encoding */
            ((u8 *)writes)[fields[i] / 8] |= (u8)(1 << (fields[i] & 7));
            guest_is(access_field);
            CHECK_AT(fields[i], enter(), 25);
            ((u8 *)writes)[fields[i] / 8] = 0;
            vmclear((u64)vmcs);
        }
    }
    CHECK(vmclear((u64)shadow), 0);
    CHECK(vmptrld((u64)shadow), 0);
    CHECK(vmread(GRIP), 0x42);
    CHECK(vmread(IERR), 0);
    CHECK(OUTCOME("vmlaunch", "i"(0)), VMFAIL_INVALID);
    vmclear((u64)shadow);
    vmx_disable();
}
