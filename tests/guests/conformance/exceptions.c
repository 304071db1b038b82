/* Debug exceptions, and what raises which exception (SDM 6, 18). */
#include "guest.h"
/* --- debug (SDM 18) --- */
static volatile u64 db_rip, db_dr6;
static volatile int dbs;
static volatile u64 db_rips[16];
static void on_db(struct frame *f)
{
    if (dbs < 16)
        db_rips[dbs] = f->rip;
    dbs++;
    db_rip = f->rip;
    db_dr6 = READ_DR(6);
    WRITE_DR(6, 0);
    if (db_dr6 & 1)
        f->flags |= 1 << 16;
    if (dbs > 12)
        f->flags &= ~0x100ull;
    if (f->flags & 0x100 && *(u8 *)f->rip == 0x9d)
        f->flags &= ~0x100ull;
}
extern u8 here1[], here2[], here3[], here4[], here5[], here6[], here7[], here8[], here9[];
TEST(debug)
{
    handler[DB] = on_db;
    static volatile u64 data;
    WRITE_DR(6, 0);
    CHECK(READ_DR(6), 0xffff0ff0);
    dbs = 0;
    WRITE_DR(0, (u64)here1);
    WRITE_DR(7, 0x402);
    asm volatile("here1: nop");
    CHECK(dbs, 1);
    CHECK(db_rip, (u64)here1);
    CHECK(db_dr6, 0xffff0ff1);
    WRITE_DR(7, 0x400);
    dbs = 0;
    WRITE_DR(1, (u64)&data);
    WRITE_DR(7, 0x400 | 8 | 0xd << 20);
    asm volatile("movl $1, %0; here2: nop" : "=m"(data));
    CHECK(dbs, 1);
    CHECK(db_rip, (u64)here2);
    CHECK(db_dr6, 0xffff0ff2);
    WRITE_DR(7, 0x400);
    dbs = 0;
    asm volatile("pushfq; orq $0x100, (%%rsp); popfq; nop; here3: andq $~0x100, %0; pushfq; here4: andq $~0x100, "
                 "(%%rsp); popfq; nop"
                 : "+m"(data));
    CHECK(dbs >= 3, 1);
    CHECK(db_rips[0], (u64)here3);
    CHECK(db_dr6 & 0x4000, 0x4000);
    /* MOV SS holds the trap back; CPUID and RDMSR (which exit) do not lose it */
    dbs = 0;
    asm volatile("mov %%ss, %%eax; pushfq; orq $0x100, (%%rsp); popfq; mov %%eax, %%ss; cpuid; here5: pushfq; andq "
                 "$~0x100, (%%rsp); popfq; nop" ::
                     : "rax", "rbx", "rcx", "rdx");
    CHECK(db_rips[0], (u64)here5);
    dbs = 0;
    asm volatile("mov $0x1b, %%ecx; pushfq; orq $0x100, (%%rsp); popfq; rdmsr; here6: pushfq; andq $~0x100, (%%rsp); "
                 "popfq; nop" ::
                     : "rax", "rcx", "rdx");
    CHECK(db_rips[0], (u64)here6);
    dbs = 0;
    asm volatile(
        "pushfq; orq $0x100, (%%rsp); popfq; inb $0x80, %%al; here7: pushfq; andq $~0x100, (%%rsp); popfq; nop" ::
            : "rax");
    CHECK(db_rips[0], (u64)here7);
    dbs = 0;
    asm volatile("mov $0xfee00020, %%ecx; pushfq; orq $0x100, (%%rsp); popfq; mov (%%rcx), %%eax; here8: pushfq; "
                 "andq $~0x100, (%%rsp); popfq; nop" ::
                     : "rax", "rcx");
    CHECK(db_rips[0], (u64)here8);
    /* ICEBP */
    dbs = 0;
    asm volatile(".byte 0xf1; here9: nop");
    CHECK(dbs, 1);
    CHECK(db_rip, (u64)here9);
    CHECK(db_dr6, 0xffff0ff0);
    /* general detect, DR4 and DR5 */
    WRITE_DR(7, 0x2400);
    dbs = 0;
    handler[DB] = 0;
    CHECK(FAULT(READ_DR(0)), DB);
    CHECK(READ_DR(6) & 0x2000, 0x2000);
    CHECK(READ_DR(7) & 0x2000, 0);
    WRITE_DR(6, 0);
    WRITE_DR(7, 0x400);
    CHECK(FAULT(asm volatile("mov %%dr4, %%rax" :: : "rax")), -1);
    WRITE_CR(4, READ_CR(4) | 8);
    CHECK(FAULT(asm volatile("mov %%dr4, %%rax" :: : "rax")), UD);
    WRITE_CR(4, READ_CR(4) & ~8ull);
    CHECK(FAULT(WRITE_DR(6, 1ull << 32)), GP);
    CHECK(FAULT(WRITE_DR(7, 1ull << 32)), GP);
    /* I/O breakpoints need DE */
    handler[DB] = on_db;
    WRITE_CR(4, READ_CR(4) | 8);
    WRITE_DR(2, 0x80);
    WRITE_DR(7, 0x400 | 0x20 | 2 << 24);
    dbs = 0;
    outb(0x80, 0);
    CHECK(dbs, 1);
    CHECK(db_dr6, 0xffff0ff4);
    WRITE_DR(7, 0x400);
    WRITE_CR(4, READ_CR(4) & ~8ull);
    /* SYSCALL with TF set: FMASK clears it, the trap is not lost nor taken twice */
    handler[DB] = 0;
    WRITE_DR(6, 0);
}

/* --- exceptions --- */
TEST(exceptions)
{
    CHECK(FAULT(asm volatile("ud2")), UD);
    CHECK(FAULT(asm volatile("xor %%ecx, %%ecx; div %%cl" ::"a"(1) : "cx", "cc")), DE);
    CHECK(FAULT(asm volatile("int3")), BP);
    CHECK(FAULT(asm volatile("mov %0, %%ds" ::"r"(0x1000))), GP);
    CHECK(caught.error, 0x1000);
    CHECK(FAULT(asm volatile("mov %0, %%ss" ::"r"(0))), -1);
    asm volatile("mov %0, %%ss" ::"r"(16));
    CHECK(FAULT(asm volatile("mov %0, %%ss" ::"r"(0x20))), GP);
    CHECK(caught.error, 0x20);
    CHECK(FAULT(asm volatile("mov %0, %%ss" ::"r"(0x40))), SS);
    CHECK(caught.error, 0x40);
    CHECK(FAULT(asm volatile("mov %0, %%ds" ::"r"(0x40))), NP);
    CHECK(caught.error, 0x40);
    CHECK(FAULT(asm volatile("ltr %w0" ::"r"(0x58))), GP);
    CHECK(caught.error, 0x58); /* busy */
    CHECK(FAULT(asm volatile("ltr %w0" ::"r"(0))), GP);
    CHECK(FAULT(asm volatile("lldt %w0" ::"r"(8))), GP);
    CHECK(caught.error, 8);
    CHECK(FAULT(asm volatile("lldt %w0" ::"r"(0))), -1);
    CHECK(FAULT(asm volatile("pushq $0x38; pushq $1f; lretq; 1:")), NP);
    CHECK(caught.error, 0x38);
    CHECK(FAULT(asm volatile("pushq $0; pushq $1f; lretq; 1:")), GP);
    CHECK(caught.error, 0);
    u8 *odd = page();
    CHECK(FAULT(asm volatile("movaps (%0), %%xmm0" ::"r"(odd + 1))), GP);
    CHECK(FAULT(asm volatile("movups (%0), %%xmm0" ::"r"(odd + 1))), -1);
    CHECK(FAULT(asm volatile("lock; .byte 0x90")), UD);
    CHECK(FAULT(asm volatile("cmpxchg16b (%0)" ::"r"(odd + 8) : "rax", "rdx")), GP);
    CHECK(FAULT(asm volatile(".byte 0x0f, 0xff, 0xc0")), UD);
    CHECK(FAULT(asm volatile(".rept 15; .byte 0x66; .endr; nop")), GP);
    CHECK(FAULT(asm volatile("jmp *%0" ::"r"(1ull << 50))), GP);
    WRITE_CR(0, READ_CR(0) | 8);
    CHECK(FAULT(asm volatile("fnop")), NM);
    CHECK(FAULT(asm volatile("movups (%0), %%xmm0" ::"r"(odd))), NM);
    WRITE_CR(0, READ_CR(0) & ~8ull);
    WRITE_CR(0, READ_CR(0) | 4);
    CHECK(FAULT(asm volatile("fnop")), NM);
    CHECK(FAULT(asm volatile("movups (%0), %%xmm0" ::"r"(odd))), UD);
    WRITE_CR(0, READ_CR(0) & ~4ull);
    WRITE_CR(4, READ_CR(4) & ~0x200ull);
    CHECK(FAULT(asm volatile("movups (%0), %%xmm0" ::"r"(odd))), UD);
    WRITE_CR(4, READ_CR(4) | 0x200);
    /* alignment checks in user mode */
    static u8 ac[] = {0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d, 0x8b, 0x44, 0x24, 0x01, 0xcd, 0xf0};
    WRITE_CR(0, READ_CR(0) | 1 << 18);
    CHECK(FAULT(in_user_code(ac)), AC);
    CHECK(caught.error, 0);
    WRITE_CR(0, READ_CR(0) & ~(1ull << 18));
    CHECK(FAULT(in_user_code(ac)), -1);
    /* #MF, #XM */
    CHECK(FAULT(asm volatile("fninit; fldcw %0; fld1; fldz; fdivrp; fwait" ::"m"(*(u16 *)&(u16){0x37b}))), MF);
    asm volatile("fninit");
    u32 mx = 0x1d80, usual = 0x1f80;
    CHECK(FAULT(asm volatile("ldmxcsr %0; xorps %%xmm0, %%xmm0; movaps %%xmm0, %%xmm1; divss %%xmm0, %%xmm1; movl "
                             "$0x3f800000, %%eax; movd %%eax, %%xmm1; divss %%xmm0, %%xmm1" ::"m"(mx) : "rax")),
          XM);
    asm volatile("ldmxcsr %0" ::"m"(usual));
    mx = 1u << 31;
    CHECK(FAULT(asm volatile("ldmxcsr %0" ::"m"(mx))), GP);
    /* a fault while an exception is delivered is #DF: #GP handler's gate is not present */
    /* LAR, LSL, VERR */
    u64 v = 0;
    asm volatile("lar %1, %0" : "=r"(v) : "r"(8ull));
    CHECK(v, 0xaf9b00);
    asm volatile("lsl %1, %0" : "=r"(v) : "r"(16ull));
    CHECK(v, 0xffffffff);
    u8 z;
    asm volatile("verr %w1; setz %0" : "=q"(z) : "r"(8));
    CHECK(z, 1);
    asm volatile("verw %w1; setz %0" : "=q"(z) : "r"(8));
    CHECK(z, 0);
    asm volatile("verw %w1; setz %0" : "=q"(z) : "r"(0x58));
    CHECK(z, 0);
}
