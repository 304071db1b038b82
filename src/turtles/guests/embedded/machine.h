/* The machine as the embedded tower sees it: instructions without a C form, and its console. */
#ifndef MACHINE_H
#define MACHINE_H
#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define PORT_CONSOLE 0xe9    /* debug console: one character a write */
#define PORT_DONE 0xf4       /* isa-debug-exit: a guest reports its result */
#define PORT_MARK 0x80       /* POST code: begin and end of a loop that is measured (loops.c) */
#define PORT_NOBODY 0xed     /* nothing answers here */
#define PORT_SERIAL_STATUS 0x3fd
#define TIMER_VECTOR 0x30
#define TIMER_PERIOD_NS 2000000ull

static inline void outb(u16 port, u8 v) { asm volatile("outb %0, %1" ::"a"(v), "Nd"(port)); }
static inline void outw(u16 port, u16 v) { asm volatile("outw %0, %1" ::"a"(v), "Nd"(port)); }
static inline u8 inb(u16 port) { u8 v; asm volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline u64 rdtsc(void) { u32 a, d; asm volatile("rdtsc" : "=a"(a), "=d"(d)); return (u64)d << 32 | a; }
static inline u64 rdmsr(u32 m) { u32 a, d; asm volatile("rdmsr" : "=a"(a), "=d"(d) : "c"(m)); return (u64)d << 32 | a; }
static inline void wrmsr(u32 m, u64 v) { asm volatile("wrmsr" ::"c"(m), "a"((u32)v), "d"((u32)(v >> 32)) : "memory"); }
static inline void cpuid(u32 leaf, u32 sub, u32 r[4])
{
    asm volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(sub));
}
#define READ_CR(n) ({ u64 v_; asm volatile("mov %%cr" #n ", %0" : "=r"(v_)); v_; })
#define WRITE_CR(n, v) asm volatile("mov %0, %%cr" #n ::"r"((u64)(v)) : "memory")

/* `sti; hlt` is one step for interrupts: the shadow of STI ends after HLT has begun. */
static inline void wait_for_interrupt(void) { asm volatile("sti; hlt; cli" ::: "memory"); }

void *memset(void *d, int c, u64 n);
void *memcpy(void *d, const void *s, u64 n);

extern int level;             /* 1 for the lowest hypervisor above L0 */
extern volatile u64 ticks;    /* timer interrupts taken so far */
extern u64 period;            /* of the timer, in nanoseconds; 0: it is not armed again */
extern int loops;             /* what runs on top: loops.c, or leaf.c */
void on_tick(void);           /* what the timer interrupt does, also when it arrives as a VM exit */
void print(const char *format, ...);   /* %s, %u (u64), %x (u64); lines are marked with the level */
void die(const char *why, u64 value) __attribute__((noreturn));

#define RAM_OF_SELF 0x800000ull        /* what a hypervisor keeps for itself; its guest gets the rest */
#define PRISTINE 0x200000ull
#define LAZY_WINDOW 0x40000000ull      /* guest-physical pages that are backed on first touch */
#define LAZY_PAGES 8

void run_leaf(void);
void run_loops(void);
void run_vmcs_loops(void);
u64 run_hypervisor(u64 ram_end, int depth);
#endif
