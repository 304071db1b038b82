/*
 * The embedded tower: a hypervisor that runs a copy of itself as its guest, `depth` times; the last one
 * is a plain guest. Command line: depth=N (default 1) loops=1 (measure exits) level=N (set by the parent).
 */
#include "machine.h"
#include <stdarg.h>

int level = 1;
int loops;
volatile u64 ticks;
u64 period = TIMER_PERIOD_NS;
static u16 pm1a_control;

extern u64 gdt[];
extern u8 tss[], trap_stubs[];

struct idt_gate { u16 low, selector; u8 ist, type; u16 middle; u32 high, zero; } __attribute__((packed));
static struct idt_gate idt[256];

void *memset(void *d, int c, u64 n)
{
    void *r = d;
    asm volatile("rep stosb" : "+D"(d), "+c"(n) : "a"(c) : "memory");
    return r;
}

void *memcpy(void *d, const void *s, u64 n)
{
    void *r = d;
    asm volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
    return r;
}

static void put(char c)
{
    static int at_start = 1;
    if (at_start) {
        outb(PORT_CONSOLE, '['); outb(PORT_CONSOLE, 'L'); outb(PORT_CONSOLE, '0' + level);
        outb(PORT_CONSOLE, ']'); outb(PORT_CONSOLE, ' ');
    }
    at_start = c == '\n';
    outb(PORT_CONSOLE, c);
}

static void put_number(u64 v, unsigned base)
{
    char digits[24];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[v % base];
        v /= base;
    } while (v);
    while (n)
        put(digits[--n]);
}

void print(const char *f, ...)
{
    va_list args;
    va_start(args, f);
    for (; *f; f++) {
        if (*f != '%') {
            put(*f);
            continue;
        }
        switch (*++f) {
        case 's':
            for (const char *s = va_arg(args, const char *); *s; s++)
                put(*s);
            break;
        case 'u': put_number(va_arg(args, u64), 10); break;
        case 'x': put_number(va_arg(args, u64), 16); break;
        default: put(*f);
        }
    }
    va_end(args);
}

void die(const char *why, u64 value)
{
    print("FAILED: %s %x\n", why, value);
    outb(PORT_DONE, 1);
    for (;;)
        asm volatile("cli; hlt");
}

/* --- interrupts --------------------------------------------------------------------------------- */

static void arm_timer(void)
{
    if (period)
        wrmsr(0x6e0, rdtsc() + period);    /* IA32_TSC_DEADLINE */
}

void on_tick(void)
{
    ticks++;
    if (level == 1) {          /* only the lowest level has a local APIC; the others are injected into */
        wrmsr(0x80b, 0);       /* x2APIC EOI */
        arm_timer();
    }
}

void on_trap(u64 vector, u64 error, u64 rip)
{
    if (vector == TIMER_VECTOR) {
        on_tick();
        return;
    }
    print("exception %u error %x at %x, cr2 %x\n", vector, error, rip, READ_CR(2));
    die("unexpected exception", vector);
}

static void set_up_interrupts(void)
{
    u64 base = (u64)tss;
    gdt[3] = 103 | (base & 0xffffff) << 16 | 0x89ull << 40 | (base >> 24 & 0xff) << 56;
    gdt[4] = base >> 32;
    asm volatile("ltr %w0" ::"r"(24));
    for (int v = 0; v <= TIMER_VECTOR; v++) {
        u64 stub = (u64)trap_stubs + 16 * v;
        idt[v] = (struct idt_gate){stub, 8, 0, 0x8e, stub >> 16, stub >> 32, 0};
    }
    struct { u16 limit; u64 base; } __attribute__((packed)) pointer = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" ::"m"(pointer));
    if (level == 1) {
        wrmsr(0x1b, rdmsr(0x1b) | 0xc00);      /* IA32_APIC_BASE: enable, x2APIC */
        wrmsr(0x80f, 0x1ff);                   /* SVR: software enable, spurious vector FFH */
        wrmsr(0x832, 2 << 17 | TIMER_VECTOR);  /* LVT timer: TSC-deadline */
        arm_timer();
    }
}

/* --- power off through ACPI (level 1 only) -------------------------------------------------------- */

static int same(const char *a, const char *b, int n)
{
    while (n && *a == *b)
        a++, b++, n--;
    return !n;
}

static void find_power_off(void)
{
    for (char *p = (char *)0xe0000; p < (char *)0x100000; p += 16) {
        if (!same(p, "RSD PTR ", 8))
            continue;
        u32 rsdt = *(u32 *)(p + 16);
        u32 count = (*(u32 *)(u64)(rsdt + 4) - 36) / 4;
        for (u32 i = 0; i < count; i++) {
            char *table = (char *)(u64) * (u32 *)(u64)(rsdt + 36 + 4 * i);
            if (same(table, "FACP", 4))
                pm1a_control = *(u32 *)(table + 64);
        }
        return;
    }
}

/* --- main ---------------------------------------------------------------------------------------- */

struct multiboot_info { u32 flags, mem_lower, mem_upper, boot_device, cmdline; };

static int option(const char *line, const char *name, int otherwise)
{
    int n = 0;
    while (name[n])
        n++;
    for (; *line; line++)
        if (same(line, name, n))
            return line[n] - '0';
    return otherwise;
}

void main(u32 magic, struct multiboot_info *info)
{
    const char *line = info->flags & 4 ? (const char *)(u64)info->cmdline : "";
    int depth = option(line, "depth=", 1);
    level = option(line, "level=", 1);
    loops = option(line, "loops=", 0);
    if (loops)
        period = 0;
    if (magic != 0x2badb002)
        die("not started by a Multiboot loader", magic);
    if (level == 1)
        find_power_off();
    set_up_interrupts();
    u64 ram_end = (0x100000 + (u64)info->mem_upper * 1024) & ~0x1fffffull;
    if (ram_end > 0x40000000)
        ram_end = 0x40000000;
    print("up with %u MiB, %s\n", ram_end >> 20, depth ? "a hypervisor" : "a guest");
    u64 result = 0;
    if (depth)
        result = run_hypervisor(ram_end, depth);
    else if (loops)
        run_loops();
    else
        run_leaf();
    print("done\n");
    if (level == 1 && result == 0 && pm1a_control)
        outw(pm1a_control, 0x2000);            /* SLP_EN, SLP_TYP 0 or what the board takes: see below */
    if (level == 1 && result == 0 && pm1a_control)
        outw(pm1a_control, 0x2000 | 5 << 10);
    outb(PORT_DONE, result);
}
