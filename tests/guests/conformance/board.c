/* The board: local APIC, I/O APIC, 8254, test device, fw_cfg. */
#include "guest.h"
static volatile int taken[256];
static void take(struct frame *f)
{
    taken[f->vector]++;
    apic_write(0xb0, 0);
}
static void take2(struct frame *f)
{
    taken[f->vector]++;
    wrmsr(0x80b, 0);
}
static int has(u32 leaf, int reg, int bit)
{
    u32 r[4];
    cpuid(leaf, 0, r);
    return r[reg] >> bit & 1;
}
static void xapic(void)
{
    u64 b = rdmsr(0x1b);
    if (b & 0x400 || !(b & 0x800)) {
        wrmsr(0x1b, b & ~0xc00ull);
        wrmsr(0x1b, (b & ~0x400ull) | 0x800);
    }
    apic_write(0xf0, 0x1ff);
    apic_write(0x80, 0);
}
static void pause_for(u64 ticks)
{
    u64 t = rdtsc();
    while (rdtsc() - t < ticks)
        asm volatile("pause");
}
static void irqs(int on)
{
    if (on)
        asm volatile("sti; nop");
    else
        asm volatile("cli");
}

TEST(apic)
{
    xapic();
    for (int v = 0xe0; v < 0xf0; v++)
        handler[v] = take;
    u32 ver = apic_read(0x30);
    CHECK((ver & 0xff) >= 0x10 && (ver & 0xff) <= 0x15, 1);
    CHECK((ver >> 16 & 0xff) >= 5, 1);
    /* disabled: the page is not there, CPUID says so, CR8 is separate */
    u64 base = rdmsr(0x1b);
    CHECK(base & 0xfffff000, 0xfee00000);
    CHECK(base & 0x100, 0x100);
    CHECK(has(1, 3, 9), 1);
    wrmsr(0x1b, base & ~0xc00ull);
    CHECK(has(1, 3, 9), 0);
    CHECK(apic_read(0x30), ~0u);
    CHECK(FAULT(wrmsr(0x1b, (base & ~0x800ull) | 0x400)), GP);
    wrmsr(0x1b, base);
    CHECK(has(1, 3, 9), 1);
    apic_write(0xf0, 0x1ff);
    CHECK(apic_read(0x30), ver);
    u32 r[4];
    cpuid(0x80000008, 0, r);
    CHECK(FAULT(wrmsr(0x1b, base | 1ull << (r[0] & 0xff))), GP);
    CHECK(FAULT(wrmsr(0x1b, base | 1)), GP);
    /* TPR and CR8 */
    apic_write(0x80, 0x30);
    CHECK(READ_CR(8), 3);
    WRITE_CR(8, 5);
    CHECK(apic_read(0x80), 0x50);
    apic_write(0x80, 0x34);
    CHECK(READ_CR(8), 3);
    WRITE_CR(8, 0);
    CHECK(apic_read(0x80) & 0xf0, 0);
    CHECK(apic_read(0xa0), apic_read(0x80));
    /* moved */
    wrmsr(0x1b, base & ~0xc00ull);
    wrmsr(0x1b, 0x72000000ull | 0x900);
    CHECK(*(volatile u32 *)0x72000030, ver);
    CHECK(apic_read(0x30), ~0u);
    CHECK(rdmsr(0x1b), 0x72000900);
    wrmsr(0x1b, base);
    xapic();
    CHECK(apic_read(0x30), ver);
    CHECK(*(volatile u32 *)0x72000030, ~0u);
    /* self IPI: by shorthand and by identifier, with interrupts on */
    irqs(1);
    taken[0xe1] = 0;
    apic_write(0x300, 0x440e1);
    pause_for(1000);
    CHECK(taken[0xe1], 1);
    apic_write(0x310, apic_read(0x20));
    apic_write(0x300, 0x40e1);
    pause_for(1000);
    CHECK(taken[0xe1], 2);
    irqs(0);
    /* priorities: two pending, the higher first; TPR holds back */
    taken[0xe1] = taken[0xe2] = 0;
    WRITE_CR(8, 14);
    apic_write(0x300, 0x440e1);
    irqs(1);
    pause_for(1000);
    CHECK(taken[0xe1], 0);
    WRITE_CR(8, 13);
    asm volatile("nop");
    CHECK(taken[0xe1], 1);
    irqs(0);
    WRITE_CR(8, 0);
    apic_write(0x300, 0x440e1);
    CHECK(apic_read(0x270) >> 1 & 1, 1);
    CHECK(apic_read(0x170) >> 1 & 1, 0);
    irqs(1);
    irqs(0);
    CHECK(taken[0xe1], 2);
    CHECK(apic_read(0x270), 0);
    /* ESR: illegal vector */
    apic_write(0x280, 0);
    apic_write(0x300, 0x44005);
    apic_write(0x280, 0);
    CHECK(apic_read(0x280), 0x20);
    apic_write(0x280, 0);
    /* timer: one-shot, periodic, stopped, masked */
    apic_write(0x3e0, 0xb);
    taken[0xe3] = 0;
    apic_write(0x320, 0xe3);
    u64 t = rdtsc();
    irqs(1);
    apic_write(0x380, 0x10000);
    while (!taken[0xe3])
        ;
    CHECK(rdtsc() - t >= 0x10000, 1);
    CHECK(apic_read(0x390), 0);
    pause_for(5000000);
    CHECK(taken[0xe3], 1);
    apic_write(0x320, 0x200e3);
    apic_write(0x380, 20000);
    t = rdtsc();
    while (taken[0xe3] < 5 && rdtsc() - t < 1000000000)
        ;
    CHECK(taken[0xe3] >= 5, 1);
    apic_write(0x380, 0);
    pause_for(10000);
    int n = taken[0xe3];
    pause_for(3000000);
    CHECK(taken[0xe3], n);
    apic_write(0x320, 0x100e3);
    apic_write(0x380, 1000);
    pause_for(2000000);
    CHECK(taken[0xe3], n);
    /* mode changes keep the count */
    apic_write(0x380, 0x999999);
    CHECK(apic_read(0x380), 0x999999);
    apic_write(0x320, 0x300e3);
    CHECK(apic_read(0x390) > 0x999999 / 2, 1);
    CHECK(apic_read(0x380), 0x999999);
    apic_write(0x320, 0x100e3);
    CHECK(apic_read(0x390) > 0x999999 / 2, 1);
    apic_write(0x380, 0);
    /* TSC deadline: past and future, disarmed, and zero when the mode is not in force */
    if (has(1, 2, 24)) {
        apic_write(0x320, 0x400e4);
        taken[0xe4] = 0;
        wrmsr(0x6e0, rdtsc() + 100000);
        CHECK(rdmsr(0x6e0) != 0, 1);
        while (!taken[0xe4])
            ;
        CHECK(rdmsr(0x6e0), 0);
        wrmsr(0x6e0, 1);
        pause_for(100000);
        CHECK(taken[0xe4], 2);
        wrmsr(0x6e0, rdtsc() + 3000000);
        wrmsr(0x6e0, 0);
        pause_for(4000000);
        CHECK(taken[0xe4], 2);
        wrmsr(0x6e0, rdtsc() + 300000000);
        apic_write(0x320, 0x100e4);
        CHECK(rdmsr(0x6e0), 0);
        apic_write(0x380, 0);
    }
    irqs(0);
    /* LVTs are masked while the APIC is disabled by software */
    apic_write(0x350, 0x700);
    apic_write(0xf0, 0xff);
    CHECK(apic_read(0x350) >> 16 & 1, 1);
    apic_write(0x350, 0x700);
    CHECK(apic_read(0x350) >> 16 & 1, 1);
    apic_write(0xf0, 0x1ff);
}

TEST(x2apic)
{
    if (!has(1, 2, 21))
        return;
    xapic();
    for (u32 m = 0x800; m < 0x840; m++)
        CHECK_AT(m, FAULT(rdmsr(m)), GP);
    u32 id = apic_read(0x20) >> 24, ver = apic_read(0x30);
    wrmsr(0x1b, rdmsr(0x1b) | 0x400);
    CHECK(rdmsr(0x802), id);
    CHECK(rdmsr(0x803), ver);
    CHECK(rdmsr(0x80d), (id & ~15ull) << 12 | 1ull << (id & 15));
    CHECK(apic_read(0x30), ~0u);
    static const u32 read_only[] = {0x802, 0x803, 0x80a, 0x80d, 0x810, 0x818, 0x820, 0x839},
                     none[] = {0x800, 0x801, 0x804, 0x809, 0x80c, 0x80e, 0x831, 0x840, 0x8ff},
                     write_only[] = {0x80b, 0x83f};
    for (int i = 0; i < 8; i++) {
        CHECK_AT(read_only[i], FAULT(rdmsr(read_only[i])), -1);
        CHECK_AT(read_only[i], FAULT(wrmsr(read_only[i], 0)), GP);
    }
    for (int i = 0; i < 9; i++) {
        CHECK_AT(none[i], FAULT(rdmsr(none[i])), GP);
        CHECK_AT(none[i], FAULT(wrmsr(none[i], 0)), GP);
    }
    for (int i = 0; i < 2; i++)
        CHECK_AT(write_only[i], FAULT(rdmsr(write_only[i])), GP);
    CHECK(FAULT(wrmsr(0x80b, 1)), GP);
    CHECK(FAULT(wrmsr(0x80b, 0)), -1);
    CHECK(FAULT(wrmsr(0x808, 0x100)), GP);
    CHECK(FAULT(wrmsr(0x83f, 0x100)), GP);
    CHECK(FAULT(wrmsr(0x828, 1)), GP);
    CHECK(FAULT(wrmsr(0x828, 0)), -1);
    CHECK(FAULT(wrmsr(0x80f, 1ull << 32)), GP);
    CHECK(FAULT(wrmsr(0x832, 1ull << 32)), GP);
    CHECK(FAULT(wrmsr(0x832, 1ull << 20)), GP);
    CHECK(FAULT(wrmsr(0x83e, 1ull << 5)), GP);
    CHECK(FAULT(wrmsr(0x830, 1 << 13)), GP);
    CHECK(FAULT(wrmsr(0x1b, rdmsr(0x1b) & ~0x400ull)), GP);
    handler[0xe5] = take2;
    taken[0xe5] = 0;
    wrmsr(0x80f, 0x1ff);
    irqs(1);
    wrmsr(0x83f, 0xe5);
    asm volatile("nop");
    CHECK(taken[0xe5], 1);
    wrmsr(0x830, (u64)id << 32 | 0xe5);
    asm volatile("nop");
    CHECK(taken[0xe5], 2);
    wrmsr(0x830, 0x400e5);
    CHECK(taken[0xe5], 3);
    irqs(0);
    wrmsr(0x808, 0x50);
    CHECK(READ_CR(8), 5);
    WRITE_CR(8, 0);
    CHECK(rdmsr(0x808), 0);
    u64 b = rdmsr(0x1b);
    wrmsr(0x1b, b & ~0xc00ull);
    CHECK(FAULT(rdmsr(0x802)), GP);
    CHECK(FAULT(wrmsr(0x1b, b)), GP);
    wrmsr(0x1b, b & ~0x400ull);
    xapic();
}

static u32 io_read(u32 r)
{
    *(volatile u32 *)0xfec00000 = r;
    return *(volatile u32 *)0xfec00010;
}
static void io_write(u32 r, u32 v)
{
    *(volatile u32 *)0xfec00000 = r;
    *(volatile u32 *)0xfec00010 = v;
}
static void pin(int n, u32 low)
{
    io_write(0x11 + 2 * n, 0);
    io_write(0x10 + 2 * n, low);
}
static void line(int n, int v)
{ outb(0x2000 + n, v); }
static int level_count;
static void level_once(struct frame *f)
{
    taken[f->vector]++;
    line(14, 0);
    apic_write(0xb0, 0);
}
static void level_twice(struct frame *f)
{
    taken[f->vector]++;
    if (++level_count == 2)
        line(14, 0);
    apic_write(0xb0, 0);
}
TEST(ioapic)
{
    xapic();
    CHECK(io_read(1) & 0xff, io_read(1) & 0xff);
    CHECK((io_read(1) >> 16 & 0xff), 23);
    io_write(0, 0x0f000000);
    CHECK(io_read(0) >> 24, 15);
    io_write(0, 0);
    handler[0xe6] = take;
    taken[0xe6] = 0;
    pin(14, 0xe6);
    line(14, 0);
    irqs(1);
    line(14, 1);
    asm volatile("nop");
    CHECK(taken[0xe6], 1);
    line(14, 1);
    CHECK(taken[0xe6], 1);
    line(14, 0);
    line(14, 1);
    CHECK(taken[0xe6], 2);
    line(14, 0);
    pin(14, 0x100e6);
    line(14, 1);
    CHECK(taken[0xe6], 2);
    line(14, 0);
    handler[0xe7] = level_once;
    taken[0xe7] = 0;
    pin(14, 0x80e7);
    line(14, 1);
    asm volatile("nop");
    CHECK(taken[0xe7], 1);
    CHECK(io_read(0x10 + 28) >> 14 & 1, 0);
    handler[0xe7] = level_twice;
    level_count = 0;
    taken[0xe7] = 0;
    line(14, 1);
    asm volatile("nop");
    CHECK(taken[0xe7], 2);
    irqs(0);
    handler[0xe7] = level_once;
    line(14, 1);
    CHECK(io_read(0x10 + 28) >> 12 & 5, 4);
    irqs(1);
    asm volatile("nop");
    irqs(0);
    line(14, 0);
    pin(14, 0x10000);
    /* two pins at once: the higher vector first */
}
TEST(testdev)
{
    outl(0xe0, 0x12345678);
    CHECK(inl(0xe0), 0x12345678);
    CHECK(inb(0xe0), 0x78);
    CHECK(inb(0xe1), 0x56);
    outb(0xe2, 0xaa);
    CHECK(inl(0xe0), 0x12aa5678);
    volatile u64 *m = (u64 *)0xff000000;
    m[0] = 0x1122334455667788;
    CHECK(m[0], 0x1122334455667788);
    CHECK(*(volatile u8 *)((u64)m + 1), 0x77);
    asm volatile("lock xaddq %0, (%1)" ::"r"(1ull), "r"(m) : "memory");
    CHECK(m[0], 0x1122334455667789);
    u64 v = 5;
    asm volatile("xchg %0, (%1)" : "+r"(v) : "r"(m) : "memory");
    CHECK(v, 0x1122334455667789);
    CHECK(m[0], 5);
    asm volatile("movups (%0), %%xmm0; movups %%xmm0, 32(%0)" ::"r"(m) : "memory");
    CHECK(m[4], 5);
    asm volatile("push (%0); pop 8(%0)" ::"r"(m) : "memory");
    CHECK(m[1], 5);
    u64 si = (u64)m, di = si + 64, n = 16;
    asm volatile("rep movsb" : "+S"(si), "+D"(di), "+c"(n)::"memory");
    CHECK(n, 0);
    CHECK(di, (u64)m + 80);
    CHECK(m[8], 5);
    CHECK(m[9], 5);
    u8 z;
    m[2] = 5;
    si = (u64)m;
    di = si + 16;
    asm volatile("cmpsq; setz %0" : "=q"(z), "+S"(si), "+D"(di));
    CHECK(z, 1);
    di = (u64)m;
    asm volatile("scasq; setz %0" : "=q"(z), "+D"(di) : "a"(5ull));
    CHECK(z, 1);
    di = (u64)m;
    n = 4;
    asm volatile("rep stosq" : "+D"(di), "+c"(n) : "a"(7ull) : "memory");
    CHECK(m[3], 7);
    v = 7;
    asm volatile("cmpxchg %2, (%1)" : "+a"(v) : "r"(m), "r"(9ull) : "memory");
    CHECK(m[0], 9);
    asm volatile("btsq $4, (%0); negq 8(%0); shlq $2, 16(%0)" ::"r"(m) : "memory");
    CHECK(m[0], 9 | 16);
    CHECK(m[1], -7ull);
    CHECK(m[2], 28);
    outb(0x510, 5);
}
TEST(pit)
{
    xapic();
    handler[0xe8] = take;
    taken[0xe8] = 0;
    pin(2, 0xe8);
    irqs(1);
    outb(0x43, 0x34);
    outb(0x40, 0x9c);
    outb(0x40, 0x2e); /* 100 Hz */
    u64 t = rdtsc();
    while (taken[0xe8] < 3 && rdtsc() - t < 2000000000)
        ;
    CHECK(taken[0xe8] >= 3, 1);
    t = rdtsc() - t;
    CHECK(t > 18000000, 1);
    outb(0x43, 0x30);
    outb(0x40, 0xff);
    outb(0x40, 0x10);
    irqs(0);
    pin(2, 0x10000);
    /* through the 8259 and LINT0 */
    outb(0x20, 0x11);
    outb(0x21, 0xd0);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0x21, 0xfe);
    apic_write(0x350, 0x700);
    handler[0xd0] = 0;
    outb(0x21, 0xff);
    outb(0x43, 0x34);
    outb(0x40, 0);
    outb(0x40, 0);
    outb(0x43, 0xe2);
    u8 status = inb(0x40);
    CHECK(status & 0x3e, 0x34);
    outb(0x43, 0x00);
    u32 a = inb(0x40);
    a |= inb(0x40) << 8;
    pause_for(1000000);
    outb(0x43, 0);
    u32 b = inb(0x40);
    b |= inb(0x40) << 8;
    CHECK(a != b, 1);
}
TEST(fwcfg)
{
    asm volatile("outw %%ax, %%dx" ::"a"(0), "d"(0x510));
    CHECK(inb(0x511), 'Q');
    CHECK(inb(0x511), 'E');
    asm volatile("outw %%ax, %%dx" ::"a"(5), "d"(0x510));
    CHECK(inb(0x511), 1);
    asm volatile("outw %%ax, %%dx" ::"a"(15), "d"(0x510));
    CHECK(inb(0x511) >= 1, 1);
    asm volatile("outw %%ax, %%dx" ::"a"(3), "d"(0x510));
    u64 m = 0;
    for (int i = 0; i < 8; i++)
        m |= (u64)inb(0x511) << 8 * i;
    CHECK(m, 1536ull << 20);
    CHECK(inb(0x64) & 0xc0, 0);
}
