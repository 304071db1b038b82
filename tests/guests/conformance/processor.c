/* MSRs, time, reserved bits of control registers, protection by pages (SDM 2, 4, 18, vol. 4). */
#include "guest.h"

static int has(u32 leaf, int reg, int bit)
{
    u32 r[4];
    cpuid(leaf, 0, r);
    return r[reg] >> bit & 1;
}
enum { A, B, C, D };

static int msr_takes(u32 m, u64 v)
{
    u64 old = rdmsr(m), now;
    if (FAULT(wrmsr(m, v)) >= 0)
        return 0;
    now = rdmsr(m);
    wrmsr(m, old);
    return now == v;
}
TEST(msr_values)
{
    static const struct {
        u32 msr;
        u64 value;
    } good[] = {{0x174, 0x1234},
                {0x175, 0x123456789abc},
                {0x176, 0x123456789abc},
                {0x1a0, 0x400c51889},
                {0x277, 0x07070707},
                {0xc0000100, 0x123456789abc},
                {0xc0000101, 0x123456789abc},
                {0xc0000102, 0x123456789abc},
                {0xc0000080, 0xd00},
                {0xc0000082, 0x123456789abc},
                {0xc0000083, 0x123456789abc},
                {0xc0000084, 0xffffffff},
                {0xc0000081, 0x1234567887654321},
                {0xc0000103, 0xffffffff},
                {0x2ff, 0xc06},
                {0x250, 0x0606060606060606}};
    for (unsigned i = 0; i < sizeof good / sizeof *good; i++)
        if (good[i].msr != 0xc0000080)
            CHECK_AT(good[i].msr, msr_takes(good[i].msr, good[i].value), 1);
    static const u32 addresses[] = {0x175, 0x176, 0xc0000100, 0xc0000101, 0xc0000102, 0xc0000082, 0xc0000083};
    for (int i = 0; i < 7; i++)
        CHECK_AT(addresses[i], FAULT(wrmsr(addresses[i], 0x4000000000000000)), GP);
    CHECK(FAULT(wrmsr(0x277, 0x0200000000000000)), GP);
    CHECK(FAULT(wrmsr(0x277, 8)), GP);
    CHECK(FAULT(wrmsr(0xc0000080, 1 << 1)), GP);
    CHECK(FAULT(wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x100ull)), GP);
    CHECK(FAULT(wrmsr(0xc0000084, 1ull << 32)), GP);
    CHECK(FAULT(wrmsr(0xc0000103, 1ull << 32)), GP);
    CHECK(FAULT(wrmsr(0x2ff, 2)), GP);
    CHECK(FAULT(wrmsr(0x12345678, 0)), GP);
    CHECK(FAULT(rdmsr(0x12345678)), GP);
    u32 banks = rdmsr(0x179) & 0xff;
    for (u32 i = banks; i < 32; i++)
        for (u32 k = 0; k < 4; k++) {
            CHECK_AT(0x400 + 4 * i + k, FAULT(rdmsr(0x400 + 4 * i + k)), GP);
            CHECK_AT(0x400 + 4 * i + k, FAULT(wrmsr(0x400 + 4 * i + k, 0)), GP);
        }
    CHECK(FAULT(wrmsr(0x179, 0)), GP);
    CHECK(FAULT(wrmsr(0xfe, 0)), GP);
    CHECK(FAULT(wrmsr(0x10a, 0)), GP);
    for (int i = 1; i < 64; i++) {
        CHECK_AT(i, FAULT(wrmsr(0x49, 1ull << i)), GP);
        CHECK_AT(i, FAULT(wrmsr(0x10b, 1ull << i)), GP);
    }
    CHECK(FAULT(wrmsr(0x49, 1)), has(7, D, 26) ? -1 : GP);
    CHECK(FAULT(wrmsr(0x10b, 1)), has(7, D, 28) ? -1 : GP);
    CHECK(FAULT(rdmsr(0x49)), GP);
    /* XSETBV */
    WRITE_CR(4, READ_CR(4) | 1 << 18);
#define XSETBV(n, v) asm volatile("xsetbv" ::"c"(n), "a"((u32)(v)), "d"((u32)((u64)(v) >> 32)))
    CHECK(FAULT(XSETBV(0, 0)), GP);
    CHECK(FAULT(XSETBV(0, 2)), GP);
    CHECK(FAULT(XSETBV(1, 1)), GP);
    CHECK(FAULT(XSETBV(0, 5)), GP);
    CHECK(FAULT(XSETBV(0, 1ull << 63)), GP);
    CHECK(FAULT(XSETBV(0, 3)), -1);
    CHECK(FAULT(XSETBV(0, 1)), -1);
    CHECK(FAULT(XSETBV(0, 1 | 1ull << 32)), GP);
    if (has(1, C, 28)) {
        CHECK(FAULT(XSETBV(0, 7)), -1);
    }
    CHECK(has(1, C, 27), 1);
    WRITE_CR(4, READ_CR(4) & ~(1ull << 18));
    CHECK(FAULT(XSETBV(0, 1)), UD);
    CHECK(FAULT(asm volatile("xgetbv" ::"c"(0) : "rax", "rdx")), UD);
    CHECK(has(1, C, 27), 0);
    WRITE_CR(4, READ_CR(4) | 1 << 18);
    XSETBV(0, 7);
    WRITE_CR(4, READ_CR(4) & ~(1ull << 18));
}

TEST(tsc)
{
    u64 t = rdtsc();
    CHECK(rdtsc() > t, 1);
    wrmsr(0x10, 0);
    CHECK(rdtsc() < 1000000000, 1);
    wrmsr(0x10, 100000000000);
    t = rdtsc();
    CHECK(t >= 100000000000 && t < 101000000000, 1);
    if (has(7, B, 1)) {
        wrmsr(0x3b, 0);
        CHECK(rdmsr(0x3b), 0);
        t = rdtsc();
        wrmsr(0x3b, 123456789123);
        CHECK(rdmsr(0x3b), 123456789123);
        u64 u = rdtsc();
        CHECK(u >= t + 123456789123 && u < t + 124456789123, 1);
        wrmsr(0x3b, 0);
        t = rdtsc();
        wrmsr(0x10, t + 1000000000000);
        CHECK((rdmsr(0x3b) + 100000000 - 1000000000000) < 200000000, 1);
        wrmsr(0x3b, 0);
        wrmsr(0x3b, -1ull << 40);
        wrmsr(0x3b, 0);
    }
    u32 a, d, c;
    for (u64 v = 0; v < 3; v++) {
        wrmsr(0xc0000103, v * 0x10101);
        asm volatile("rdtscp" : "=a"(a), "=d"(d), "=c"(c));
        CHECK(c, v * 0x10101);
    }
    wrmsr(0xc0000103, 0);
    static u8 rdtsc_user[] = {0x0f, 0x31, 0xcd, 0xf0};
    WRITE_CR(4, READ_CR(4) | 4);
    CHECK(FAULT(in_user_code(rdtsc_user)), GP);
    WRITE_CR(4, READ_CR(4) & ~4ull);
    CHECK(FAULT(in_user_code(rdtsc_user)), -1);
}

TEST(crs_reserved)
{
    u64 c0 = READ_CR(0), c4 = READ_CR(4);
    CHECK(FAULT(WRITE_CR(0, c0 & ~1ull)), GP); /* PG without PE */
    CHECK(FAULT(WRITE_CR(0, c0 | 1ull << 32)), GP);
    CHECK(FAULT(WRITE_CR(0, (c0 | 1 << 29) & ~(1ull << 30))), GP); /* NW without CD */
    CHECK(FAULT(WRITE_CR(4, c4 & ~0x20ull)), GP);                  /* PAE in long mode */
    CHECK(FAULT(WRITE_CR(4, c4 | 1ull << 32)), GP);
    CHECK(FAULT(WRITE_CR(4, c4 | 1 << 15)), GP);
    CHECK(FAULT(WRITE_CR(3, READ_CR(3) | 1ull << 52)), GP);
    static const struct {
        u8 bit;
        u32 leaf;
        u8 reg, at;
    } gated[] = {{11, 7, C, 2},  {12, 7, C, 16}, {16, 7, B, 0}, {17, 1, C, 17}, {18, 1, C, 26}, {20, 7, B, 7},
                 {21, 7, B, 20}, {22, 7, C, 3},  {23, 7, C, 7}, {24, 7, C, 31}, {14, 1, C, 6},  {13, 1, C, 5}};
    for (unsigned i = 0; i < sizeof gated / sizeof *gated; i++) {
        int there = has(gated[i].leaf, gated[i].reg, gated[i].at);
        if (there && (gated[i].bit == 12 || gated[i].bit == 20 || gated[i].bit == 21))
            continue;
        CHECK_AT(gated[i].bit, FAULT(WRITE_CR(4, c4 | 1ull << gated[i].bit)), there ? -1 : GP);
        WRITE_CR(4, c4);
    }
    CHECK(FAULT(asm volatile("mov %0, %%cr8" ::"r"(16ull))), GP);
    CHECK(FAULT(asm volatile(".byte 0x0f, 0x20, 0xc8" :: : "rax")), UD); /* CR1 */
    /* PCIDE with CR3[11:0] not 0; clearing it, and PG */
    if (has(1, C, 17)) {
        u64 c3 = READ_CR(3);
        WRITE_CR(3, c3 | 0x18);
        CHECK(FAULT(WRITE_CR(4, c4 | 1 << 17)), GP);
        WRITE_CR(3, c3);
        WRITE_CR(4, c4 | 1 << 17);
        WRITE_CR(3, c3 | 5);
        CHECK(READ_CR(3) & 0xfff, 5);
        WRITE_CR(3, c3 | 6 | 1ull << 63);
        CHECK(READ_CR(3), c3 | 6);
        CHECK(FAULT(WRITE_CR(0, c0 & ~0x80000000ull)), GP);
        struct {
            u64 pcid, linear;
        } d = {0, 0};
#define INVPCID(t, p, l)                                                                                             \
    ({                                                                                                               \
        d.pcid = (p);                                                                                                \
        d.linear = (l);                                                                                              \
        FAULT(asm volatile("invpcid %0, %1" ::"m"(d), "r"((u64)(t)) : "memory"));                                    \
    })
        if (has(7, B, 10)) {
            for (int t = 0; t < 4; t++)
                CHECK_AT(t, INVPCID(t, t < 2 ? 6 : 0, 0), -1);
            CHECK(INVPCID(4, 0, 0), GP);
            CHECK(INVPCID(0, 1 << 12, 0), GP);
            CHECK(INVPCID(0, 0, 1ull << 62), GP);
            CHECK(INVPCID(1, 1ull << 40, 0), GP);
            CHECK(FAULT(asm volatile("invpcid (%0), %1" ::"r"(1ull << 62), "r"(0ull))), GP);
        }
        WRITE_CR(3, c3);
        WRITE_CR(4, c4);
        if (has(7, B, 10)) {
            CHECK(INVPCID(0, 0, 0), -1);
            CHECK(INVPCID(0, 5, 0), GP);
            CHECK(INVPCID(2, 5, 1ull << 62), -1);
        }
    }
}

static volatile u64 *user_page = (u64 *)0x30000000;
static void user_read(void)
{ *user_page; }
static void user_write(void)
{ *user_page = 1; }
TEST(protection)
{
    u64 *pte = pte_of((u64)user_page), full = *pte, c0 = READ_CR(0), c4 = READ_CR(4);
    /* rights: present, write, user, no-execute, by privilege and CR0.WP; error codes */
    for (int p = 0; p < 16; p++) {
        *pte = full & ~7ull & ~(1ull << 63) | (p & 7) | (p & 8 ? 1ull << 63 : 0);
        for (int op = 0; op < 3; op++)
            for (int user = 0; user < 2; user++)
                for (int wp = 0; wp < 2; wp++) {
                    invlpg((u64)user_page);
                    WRITE_CR(0, wp ? c0 : c0 & ~0x10000ull);
                    int ok =
                        (p & 1) && (!user || p & 4) && (op != 1 || p & 2 || (!user && !wp)) && (op != 2 || !(p & 8));
                    int v;
                    if (op == 2) {
                        static u8 code[16] = {0xb8, 0, 0, 0, 0x30, 0xff, 0xd0, 0xcd, 0xf0};
                        *pte |= 3;
                        invlpg((u64)user_page);
                        *(u8 *)user_page = 0xc3;
                        *pte = full & ~7ull & ~(1ull << 63) | (p & 7) | (p & 8 ? 1ull << 63 : 0);
                        invlpg((u64)user_page);
                        v = user ? FAULT(in_user_code(code)) : FAULT(((void (*)(void))user_page)());
                    } else
                        v = user ? (op ? FAULT(in_user(user_write)) : FAULT(in_user(user_read)))
                                 : (op ? FAULT(user_write()) : FAULT(user_read()));
                    CHECK_AT(p << 12 | op << 8 | user << 4 | wp, v, ok ? -1 : PF);
                    if (!ok && v == PF)
                        CHECK_AT(p << 12 | op << 8 | user << 4 | wp, caught.error,
                                 (p & 1) | (op == 1 ? 2 : 0) | (user ? 4 : 0) | (op == 2 ? 16 : 0));
                }
    }
    WRITE_CR(0, c0);
    /* reserved bits */
    *pte = full | 1ull << 51;
    invlpg((u64)user_page);
    u32 r[4];
    cpuid(0x80000008, 0, r);
    if ((r[0] & 0xff) < 52) {
        CHECK(FAULT(user_read()), PF);
        CHECK(caught.error, 9);
    }
    wrmsr(0xc0000080, rdmsr(0xc0000080) & ~0x800ull);
    *pte = full | 1ull << 63;
    invlpg((u64)user_page);
    CHECK(FAULT(user_read()), PF);
    CHECK(caught.error, 9);
    wrmsr(0xc0000080, rdmsr(0xc0000080) | 0x800);
    *pte = full;
    invlpg((u64)user_page);
    /* accessed and dirty */
    *pte = full & ~0x60ull;
    invlpg((u64)user_page);
    user_read();
    CHECK(*pte & 0x60, 0x20);
    user_write();
    CHECK(*pte & 0x60, 0x60);
    *pte = full & ~0x62ull;
    invlpg((u64)user_page);
    CHECK(FAULT(user_write()), PF);
    CHECK(*pte & 0x40, 0);
    *pte = full;
    invlpg((u64)user_page);
    /* SMEP, SMAP */
    if (has(7, B, 7)) {
        *(u8 *)user_page = 0xc3;
        /* this code's own pages are the user's too: they become the supervisor's meanwhile */
        for (u64 a = 0; a < 8; a++)
            pd[a] &= ~4ull;
        WRITE_CR(3, READ_CR(3));
        WRITE_CR(4, c4 | 1 << 20);
        CHECK(FAULT(((void (*)(void))user_page)()), PF);
        CHECK(caught.error, 0x11);
        WRITE_CR(4, c4);
        if (has(7, B, 20)) {
            WRITE_CR(4, c4 | 1 << 21);
            CHECK(FAULT(user_read()), PF);
            CHECK(caught.error, 1);
            CHECK(FAULT(user_write()), PF);
            CHECK(caught.error, 3);
            asm volatile("stac");
            CHECK(FAULT(user_read()), -1);
            asm volatile("clac");
            CHECK(FAULT(asm volatile("stac" :: : "cc"); user_write(); asm volatile("clac" :: : "cc")), -1);
            WRITE_CR(4, c4);
            static u8 stac_user[] = {0x0f, 0x01, 0xcb, 0xcd, 0xf0};
            for (u64 a = 0; a < 8; a++)
                pd[a] |= 4;
            WRITE_CR(3, READ_CR(3));
            CHECK(FAULT(in_user_code(stac_user)), UD);
        }
        for (u64 a = 0; a < 8; a++)
            pd[a] |= 4;
        WRITE_CR(3, READ_CR(3));
    }
    /* UMIP */
    if (has(7, C, 2)) {
        static u8 sgdt_user[] = {0x0f, 1, 0x04, 0x24, 0xcd, 0xf0}, smsw[] = {0x0f, 1, 0xe0, 0xcd, 0xf0},
                  str[] = {0x0f, 0, 0xc8, 0xcd, 0xf0}, sldt[] = {0x0f, 0, 0xc0, 0xcd, 0xf0},
                  sidt[] = {0x0f, 1, 0x0c, 0x24, 0xcd, 0xf0};
        u8 *all[] = {sgdt_user, smsw, str, sldt, sidt};
        for (int i = 0; i < 5; i++) {
            CHECK_AT(i, FAULT(in_user_code(all[i])), -1);
            WRITE_CR(4, c4 | 1 << 11);
            CHECK_AT(i, FAULT(in_user_code(all[i])), GP);
            CHECK(caught.error, 0);
            WRITE_CR(4, c4);
        }
    }
    /* non-canonical */
    CHECK(FAULT(*(volatile u64 *)(1ull << 48)), GP);
    CHECK(FAULT(asm volatile("push %%rbp; mov %0, %%rbp; mov (%%rbp), %%rax; pop %%rbp" ::"r"(1ull << 48) : "rax")),
          SS);
}
