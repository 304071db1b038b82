/* What the conformance guests share: instructions without a C form, exceptions as results, a report. */
#ifndef GUEST_H
#define GUEST_H
#include <stdint.h>
typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

static inline void outb(u16 p, u8 v)
{ asm volatile("outb %0, %1" ::"a"(v), "Nd"(p)); }
static inline void outl(u16 p, u32 v)
{ asm volatile("outl %0, %1" ::"a"(v), "Nd"(p)); }
static inline u8 inb(u16 p)
{
    u8 v;
    asm volatile("inb %1, %0" : "=a"(v) : "Nd"(p));
    return v;
}
static inline u32 inl(u16 p)
{
    u32 v;
    asm volatile("inl %1, %0" : "=a"(v) : "Nd"(p));
    return v;
}
static inline u64 rdtsc(void)
{
    u32 a, d;
    asm volatile("rdtsc" : "=a"(a), "=d"(d));
    return (u64)d << 32 | a;
}
static inline u64 rdmsr(u32 m)
{
    u32 a, d;
    asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m) : "memory");
    return (u64)d << 32 | a;
}
static inline void wrmsr(u32 m, u64 v)
{ asm volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{ asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub)); }
#define READ_CR(n)                                                                                                   \
    ({                                                                                                               \
        u64 v_;                                                                                                      \
        asm volatile("mov %%cr" #n ", %0" : "=r"(v_));                                                               \
        v_;                                                                                                          \
    })
#define WRITE_CR(n, v) asm volatile("mov %0, %%cr" #n::"r"((u64)(v)) : "memory")
#define READ_DR(n)                                                                                                   \
    ({                                                                                                               \
        u64 v_;                                                                                                      \
        asm volatile("mov %%dr" #n ", %0" : "=r"(v_));                                                               \
        v_;                                                                                                          \
    })
#define WRITE_DR(n, v) asm volatile("mov %0, %%dr" #n::"r"((u64)(v)) : "memory")
static inline u64 read_flags(void)
{
    u64 v;
    asm volatile("pushfq; popq %0" : "=r"(v));
    return v;
}

struct point {
    u64 r[8];
};
int save(struct point *) __attribute__((returns_twice));
void restore(struct point *, int) __attribute__((noreturn));

struct frame {
    u64 rax, rcx, rdx, rbx, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15;
    u64 vector, error, rip, cs, flags, rsp, ss;
};
extern struct point catch_point;
extern volatile int catching;
extern struct frame caught; /* of the exception that was caught last */
extern void (*volatile handler[256])(struct frame *);

/* -1 where `statement` ends without an exception, else its vector; `caught` says more. */
#define FAULT(statement)                                                                                             \
    ({                                                                                                               \
        int v_ = -1;                                                                                                 \
        catching = 1;                                                                                                \
        int s_ = save(&catch_point);                                                                                 \
        if (!s_) {                                                                                                   \
            statement;                                                                                               \
        } else                                                                                                       \
            v_ = s_ - 1;                                                                                             \
        catching = 0;                                                                                                \
        v_;                                                                                                          \
    })

void printf(const char *format, ...); /* %s %d %x %u (all 64 bit) */
void check_(int ok, const char *what, int line, u64 found, u64 wanted);
#define CHECK(found, wanted)                                                                                         \
    do {                                                                                                             \
        u64 f_ = (u64)(found), w_ = (u64)(wanted);                                                                   \
        check_(f_ == w_, #found " == " #wanted, __LINE__, f_, w_);                                                   \
    } while (0)
#define CHECK_AT(at, found, wanted)                                                                                  \
    do {                                                                                                             \
        u64 f_ = (u64)(found), w_ = (u64)(wanted);                                                                   \
        if (f_ != w_) {                                                                                              \
            printf("  (at %x)", (u64)(at));                                                                          \
        }                                                                                                            \
        check_(f_ == w_, #found " == " #wanted, __LINE__, f_, w_);                                                   \
    } while (0)
void *page(void); /* a zeroed page */
void *memset(void *d, int c, u64 n);
void *memcpy(void *d, const void *s, u64 n);
void set_gate(int vector, void *at, int ist, int dpl);
u64 *pte_of(u64 linear);            /* its page-table entry; splits large pages on the way */
void in_user(void (*f)(void));      /* runs f at CPL 3 and comes back */
u64 in_user_code(const void *code); /* the same for raw code that ends in int $0xf0 */
static inline void invlpg(u64 a)
{ asm volatile("invlpg (%0)" ::"r"(a) : "memory"); }

extern u64 pml4[], pdpt[], pd[], gdt[];
extern u8 tss[], stack_top[], ist_top[], trap_stubs[], image_end[];
extern int failures, checks;

#define TEST(name) void test_##name(void)
#define APIC 0xfee00000ull
static inline u32 apic_read(u32 r)
{ return *(volatile u32 *)(APIC + r); }
static inline void apic_write(u32 r, u32 v)
{ *(volatile u32 *)(APIC + r) = v; }
/* an IPI to itself: vector and delivery mode */
static inline void apic_send(u32 command)
{
    apic_write(0x310, 0);
    apic_write(0x300, 0x40000 | command);
}
/* xAPIC mode, enabled, nothing masked */
static inline void apic_on(void)
{
    if (rdmsr(0x1b) & 0x400) {
        wrmsr(0x1b, rdmsr(0x1b) & ~0xc00ull);
        wrmsr(0x1b, rdmsr(0x1b) | 0x800);
    }
    apic_write(0xf0, 0x1ff);
    apic_write(0x80, 0);
}
enum { DE, DB, NMI, BP, OF, BR, UD, NM, DF, TS = 10, NP, SS, GP, PF, MF = 16, AC, MC, XM };
#endif
