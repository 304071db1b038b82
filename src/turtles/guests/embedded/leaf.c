/* The plain guest on top of the tower: one of each exit, and what it saw. */
#include "machine.h"

/* Each level multiplies what an exit costs (by ten and more): deep towers take fewer. */
#define CPUID_LOOPS (level <= 2 ? 1000u : 100u)

static void take_cpuid_exits(void)
{
    u32 r[4];
    char vendor[13] = {0};
    cpuid(0x40000000, 0, r);
    for (int i = 0; i < 12; i++)
        vendor[i] = ((char *)&r[1])[i];
    print("the hypervisor below calls itself \"%s\"\n", vendor);
    print("BENCH begin.cpuid 1 0\n");  /* as the benches' guests say it */
    u64 loops = CPUID_LOOPS, t = rdtsc();
    for (u64 i = 0; i < loops; i++)
        cpuid(0, 0, r);
    t = rdtsc() - t;
    print("BENCH cpuid %u %u\n", loops, t / loops);
    print("%u CPUID exits, %u ns each\n", loops, t / loops);
}

static void take_ept_violations(void)
{
    if (level == 1) {  /* only our own hypervisor leaves a window of memory to be filled when it is touched */
        print("no window below: this guest has no hypervisor of ours\n");
        return;
    }
    for (u64 i = 0; i < LAZY_PAGES; i++) {
        volatile u64 *p = (u64 *)(LAZY_WINDOW + i * 4096);
        if (*p)
            die("a fresh page is not zero", *p);
        *p = 0x7475727400000000 + i;
    }
    for (u64 i = 0; i < LAZY_PAGES; i++) {
        volatile u64 *p = (u64 *)(LAZY_WINDOW + i * 4096);
        if (*p != 0x7475727400000000 + i)
            die("a page lost what was written", i);
    }
    print("%u pages came by EPT violation and kept their contents\n", (u64)LAZY_PAGES);
}

static void take_io_exits(void)
{
    outb(0x80, 0x55);
    u8 v = inb(0x80);
    print("port 80H answers %x\n", (u64)v);
}

static void take_interrupts(void)
{
    while (ticks < 5)
        wait_for_interrupt();
    print("%u timer interrupts while halted\n", (u64)ticks);
    u64 before = ticks;
    asm volatile("sti");
    while (ticks < before + 3)
        asm volatile("pause");
    asm volatile("cli");
    print("%u timer interrupts while running\n", (u64)(ticks - before));
}

void run_leaf(void)
{
    take_cpuid_exits();
    take_io_exits();
    take_ept_violations();
    take_interrupts();
}
