/* EPT: rights, misconfigurations, accessed and dirty flags (SDM 29.3). */
#include "vmx.h"

static volatile u64 *const data = (u64 *)0x40000000; /* pages that only the EPT tests use (1 GiB) */

/* --- EPT --- */
static void read_data(void)
{
    shared_[0] = *data;
    vmcall();
}
static void write_data(void)
{
    *data = 5;
    vmcall();
}
static void exec_data(void)
{
    ((void (*)(void))data)();
    vmcall();
}
static void user_data(void)
{
    *data;
    vmcall();
}
static u64 with_ept(int level, void (*f)(void), int ad)
{
    fresh(f);
    u64 eptp = identity_ept(level);
    if (ad)
        eptp |= 0x40;
    controls(SEC, 2, 0);
    vmwrite(EPTP, eptp);
    invept(1, eptp, 0);
    return eptp;
}
TEST(ept)
{
    if (!offered(2))
        return;
    vmx_enable();
    for (int level = 1; level <= 3; level++) {
        u64 eptp = with_ept(level == 3 ? 3 : 2, read_data, 0);
        u64 *e = ept_entry(eptp, (u64)data, level), full = *e;
        for (u64 perm = 0; perm < 8; perm++) {
            static void (*const what[])(void) = {read_data, write_data, exec_data};
            for (int op = 0; op < 3; op++) {
                *e = full & ~7ull | perm;
                invept(1, eptp, 0);
                guest_is(what[op]);
                *(u8 *)data = 0xc3;
                int r = enter();
                int bad = (perm & 3) == 2; /* write without read: misconfiguration */
                u64 need = op == 0 ? 1 : op == 1 ? 2 : 4;
                if (bad) {
                    CHECK_AT(perm << 4 | op, r, X_EPTM);
                    CHECK(vmread(GPA), (u64)data);
                    continue;
                }
                if (perm & need) {
                    CHECK_AT(level << 8 | perm << 4 | op, r, X_VMCALL);
                    continue;
                }
                CHECK_AT(level << 8 | perm << 4 | op, r, X_EPTV);
                if (r != X_EPTV)
                    continue;
                CHECK_AT(level << 8 | perm << 4 | op, vmread(QUAL) & 0x1ff, 1 << op | perm << 3 | 0x180);
                CHECK(vmread(GPA), (u64)data);
                CHECK(vmread(LINEAR), (u64)data);
                CHECK(vmread(QUAL) >> 13, 0);
            }
        }
        /* reserved bits and memory types */
        static const u64 bad[] = {2ull << 3, 3ull << 3, 7ull << 3};
        for (int i = 0; i < 3; i++) {
            *e = full & ~0x38ull | bad[i];
            invept(1, eptp, 0);
            guest_is(read_data);
            CHECK_AT(level << 4 | i, enter(), X_EPTM);
        }
        u32 r[4];
        cpuid(0x80000008, 0, r);
        for (int bit = 0; bit < 52; bit++) {
            int reserved = bit >= (int)(r[0] & 0xff) || (level > 1 && bit >= 12 && bit < 12 + 9 * (level - 1));
            if (!reserved)
                continue;
            *e = full | 1ull << bit;
            invept(1, eptp, 0);
            guest_is(read_data);
            CHECK_AT(level << 8 | bit, enter(), X_EPTM);
        }
        for (int bit = 52; bit < 63; bit++) { /* ignored */
            *e = full | 1ull << bit;
            invept(1, eptp, 0);
            guest_is(read_data);
            CHECK_AT(level << 8 | bit, enter(), X_VMCALL);
        }
        *e = full | 1ull << 8 | 1 << 9 | 1 << 11;
        invept(1, eptp, 0);
        guest_is(read_data);
        CHECK(enter(), X_VMCALL);
        /* bits 3 to 6 of an entry that refers to a table are reserved */
        if (level < 3) {
            u64 *up = ept_entry(eptp, (u64)data, level + 1), was = *up;
            for (int bit = 3; bit < 8; bit++) {
                if (bit == 7 && level == 2)
                    continue;
                *up = was | 1ull << bit;
                invept(1, eptp, 0);
                guest_is(read_data);
                int x = enter();
                if (bit == 7)
                    CHECK_AT(level << 8 | bit, x == X_EPTM || x == X_VMCALL, 1);
                else
                    CHECK_AT(level << 8 | bit, x, X_EPTM);
            }
            *up = was;
        }
        *e = full;
        invept(1, eptp, 0);
    }
    /* the guest's page tables lie under EPT too */
    u64 eptp = with_ept(2, read_data, 0);
    u64 *g = pte_of((u64)data), table = (u64)g & ~0xfffull;
    u64 *e = ept_entry(eptp, table, 1), full = *e;
    *e = full & ~7ull;
    invept(1, eptp, 0);
    CHECK(enter(), X_EPTV);
    CHECK(vmread(QUAL) & 0x1ff, 0x81 + 0 * table);
    CHECK(vmread(GPA) & ~0xfffull, table);
    CHECK(vmread(LINEAR), (u64)data);
    *g &= ~0x60ull; /* not accessed: the walk writes */
    *e = full & ~2ull;
    invept(1, eptp, 0);
    guest_is(read_data);
    CHECK(enter(), X_EPTV);
    CHECK(vmread(QUAL) & 0x1ff, 0x80 | 3 | 5 << 3);
    CHECK(vmread(GPA) & ~0xfffull, table);
    *e = full & ~4ull;
    invept(1, eptp, 0);
    guest_is(read_data);
    CHECK(enter(), X_VMCALL);
    /* advanced information for user and writable pages is only there where offered */
    *e = full;
    invept(1, eptp, 0);
    /* bits 6:0 of guest CR3's page */
    e = ept_entry(eptp, (u64)pml4, 1);
    full = *e;
    *e = 0;
    invept(1, eptp, 0);
    guest_is(read_data);
    CHECK(enter(), X_EPTV);
    CHECK(vmread(GPA) & ~0xfffull, (u64)pml4);
    *e = full;
    invept(1, eptp, 0);
    /* an EPT violation while an event is delivered */
    vmx_disable();
}
TEST(eptad)
{
    if (!offered(2) || !(rdmsr(0x48c) >> 21 & 1))
        return;
    vmx_enable();
    for (int level = 1; level <= 3; level++) {
        u64 eptp = with_ept(level == 3 ? 3 : 2, read_data, 1);
        u64 *g = pte_of((u64)data);
        *g |= 0x60;
        u64 *e = ept_entry(eptp, (u64)data, level);
        CHECK(*e & 0x300, 0);
        CHECK(enter(), X_VMCALL);
        CHECK_AT(level, *e & 0x300, 0x100);
        guest_is(write_data);
        CHECK(enter(), X_VMCALL);
        CHECK_AT(level, *e & 0x300, 0x300);
        /* reading a guest paging structure is a write as far as EPT's dirty flags go */
        u64 *p = ept_entry(eptp, (u64)pml4, 1);
        *p &= ~0x300ull;
        invept(1, eptp, 0);
        guest_is(read_data);
        CHECK(enter(), X_VMCALL);
        CHECK_AT(level, *p & 0x300, 0x300);
        *p &= ~2ull;
        invept(1, eptp, 0);
        guest_is(read_data);
        CHECK(enter(), X_EPTV);
        CHECK_AT(level, vmread(QUAL) & 0x1bf, 0x80 | 3 | 5 << 3);
        CHECK(vmread(GPA) & ~0xfffull, (u64)pml4);
        *p |= 2;
        invept(1, eptp, 0);
        for (int l = 4; l > level; l--)
            CHECK_AT(level << 4 | l, *ept_entry(eptp, (u64)data, l) & 0x100, 0x100);
    }
    vmx_disable();
}
