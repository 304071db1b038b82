/* The conformance guest: runs the tests that the command line names (all without one), reports, ends. */
#include <stdarg.h>
#include "guest.h"

struct point catch_point;
volatile int catching;
struct frame caught;
void (*volatile handler[256])(struct frame *);
int failures, checks;
static const char *running;
static u64 next_page;
static struct {
    u16 low, selector;
    u8 ist, type;
    u16 mid;
    u32 high, zero;
} idt[256] __attribute__((aligned(16)));

static void put(char c)
{
    while (!(inb(0x3fd) & 0x20))
        ;
    outb(0x3f8, (u8)c);
}

static void number(u64 v, unsigned base)
{
    char text[24];
    int n = 0;
    do
        text[n++] = "0123456789abcdef"[v % base];
    while (v /= base);
    while (n)
        put(text[--n]);
}

void printf(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        switch (*++format) {
        case 's':
            for (const char *s = va_arg(args, const char *); *s; s++)
                put(*s);
            break;
        case 'd':
        case 'u':
            number(va_arg(args, u64), 10);
            break;
        case 'x':
            number(va_arg(args, u64), 16);
            break;
        default:
            put(*format);
        }
    }
    va_end(args);
}

void check_(int ok, const char *what, int line, u64 found, u64 wanted)
{
    checks++;
    if (ok)
        return;
    failures++;
    printf("FAIL %s:%u: %s: %x, not %x\n", running, (u64)line, what, found, wanted);
}

void *memset(void *d, int c, u64 n)
{
    u8 *p = d;
    while (n--)
        *p++ = (u8)c;
    return d;
}
void *memcpy(void *d, const void *s, u64 n)
{
    u8 *p = d;
    const u8 *q = s;
    while (n--)
        *p++ = *q++;
    return d;
}
void *page(void)
{
    void *p = (void *)next_page;
    next_page += 4096;
    return memset(p, 0, 4096);
}

void set_gate(int v, void *at, int ist, int dpl)
{
    u64 a = (u64)at;
    idt[v].low = (u16)a;
    idt[v].selector = 8;
    idt[v].ist = (u8)ist;
    idt[v].type = (u8)(0x8e | dpl << 5);
    idt[v].mid = (u16)(a >> 16);
    idt[v].high = (u32)(a >> 32);
}

u64 *pte_of(u64 linear)
{
    u64 *e = (u64 *)((u64 *)(pml4[linear >> 39 & 511] & ~0xfffull)) + (linear >> 30 & 511);
    e = (u64 *)(*e & 0x000ffffffffff000ull) + (linear >> 21 & 511);
    if (*e & 0x80) {
        u64 *t = page();
        for (int i = 0; i < 512; i++)
            t[i] = (*e & ~0x80ull) + ((u64)i << 12);
        *e = (u64)t | 7;
        WRITE_CR(3, READ_CR(3));
    }
    return (u64 *)(*e & 0x000ffffffffff000ull) + (linear >> 12 & 511);
}

static struct point user_point;
static u64 user_result;
static void user_done(struct frame *f)
{
    user_result = f->rax;
    restore(&user_point, 1);
}

u64 in_user_code(const void *code)
{
    static u8 *stack;
    if (!stack)
        stack = (u8 *)page() + 4096;
    handler[0xf0] = user_done;
    u64 flags = read_flags();
    if (!save(&user_point))
        asm volatile("pushq $0x23; pushq %0; pushq %2; pushq $0x2b; pushq %1; iretq" ::"r"((u64)stack - 128),
                     "r"(code), "r"(flags & ~0x200ull | 0x3000)
                     : "memory");
    asm volatile("mov %0, %%ds; mov %0, %%es" ::"r"(16));
    asm volatile("pushq %0; popfq" ::"r"(flags));
    return user_result;
}
static void (*user_function)(void);
asm(".globl user_entry\nuser_entry: call *user_function_at(%rip)\n int $0xf0\n");
void *user_function_at;
extern u8 user_entry[];
void in_user(void (*f)(void))
{
    user_function = f;
    user_function_at = (void *)f;
    in_user_code(user_entry);
}

void on_trap(struct frame *f)
{
    if (handler[f->vector]) {
        handler[f->vector](f);
        return;
    }
    if (catching && f->vector < 32) {
        caught = *f;
        catching = 0;
        restore(&catch_point, (int)f->vector + 1);
    }
    printf("FAIL %s: exception %u error %x at %x, cr2 %x rsp %x flags %x\n", running, f->vector, f->error, f->rip,
           READ_CR(2), f->rsp, f->flags);
    outl(0xf4, 0x7f);
    for (;;)
        asm volatile("hlt");
}

struct test {
    const char *name;
    void (*run)(void);
};
#define X(name) void test_##name(void);
#include "tests.h"
#undef X
static const struct test tests[] = {
#define X(name) {#name, test_##name},
#include "tests.h"
};

static int named(const char *line, const char *name)
{
    int any = 0;
    while (*line && *line != ' ')
        line++; /* the kernel's own name */
    while (*line == ' ')
        line++;
    while (*line) {
        any = 1;
        const char *n = name;
        while (*n && *n == *line)
            n++, line++;
        if (!*n && (*line == ' ' || !*line))
            return 1;
        while (*line && *line != ' ')
            line++;
        while (*line == ' ')
            line++;
    }
    return !any;
}

/* Gates and handlers as they are at the beginning. */
static void reset_traps(void)
{
    for (int i = 0; i < 256; i++)
        set_gate(i, trap_stubs + 16 * i, 0, i == 3 || i == 4 || i == 0xf0 ? 3 : 0);
    memset((void *)handler, 0, sizeof handler);
}

void main(u32 *info)
{
    next_page = ((u64)image_end + 0xfffff) & ~0xfffffull;
    struct {
        u16 limit;
        u64 base;
    } __attribute__((packed)) idtr = {sizeof idt - 1, (u64)idt};
    asm volatile("lidt %0" ::"m"(idtr));
    *(u64 *)(tss + 4) = (u64)stack_top; /* set again below: RSP0 must not be in use */
    *(u64 *)(tss + 4) = (u64)page() + 4096;
    *(u64 *)(tss + 36) = (u64)ist_top;
    *(u16 *)(tss + 102) = 104;
    u64 at = (u64)tss;
    gdt[11] = 0x0000890000000067ull | (at & 0xffffff) << 16 | (at >> 24 & 0xff) << 56;
    gdt[12] = at >> 32;
    asm volatile("ltr %w0" ::"r"(0x58));
    outb(0x21, 0xff);
    outb(0xa1, 0xff);
    const char *line = info[0] & 4 ? (const char *)(u64)info[4] : "";
    for (unsigned i = 0; i < sizeof tests / sizeof *tests; i++)
        if (named(line, tests[i].name)) {
            int before = failures, done = checks;
            running = tests[i].name;
            reset_traps();
            tests[i].run();
            printf("%s %s %u\n", failures == before ? "ok  " : "BAD ", running, (u64)(checks - done));
        }
    printf("%u checks, %u failures\n", (u64)checks, (u64)failures);
    outl(0xf4, failures ? 1 : 0);
}
