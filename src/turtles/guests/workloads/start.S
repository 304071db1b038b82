/*
 * Workloads that measure silicon: one loop, chosen by the fourth character of "work=loop", "work=near",
 * "work=walk" or "work=cpuid"; "work=none" has none. Each runs a fixed number of instructions and ends with a
 * debug-exit of 0.
 */
#include "long_mode.h"

#define LOOP_ROUNDS  50000000           /* 9 instructions each */
#define WALK_ROUNDS  50000000           /* 5 instructions each */
#define CPUID_ROUNDS 200000             /* 4 instructions each */
#define WALK_BASE    0x1000000          /* from 16 MiB on, a load every 4 KiB + 64 bytes */
#define NEAR_MASK    0x1fffff           /* over 2 MiB: pages that a TLB holds */
#define FAR_MASK     0x3ffffff          /* over 64 MiB: pages that it does not */

    multiboot_header

    .text
    .code32
    .globl _start
_start:
    cli
    cld
    movl 16(%ebx), %esi                 /* command line: look for "work=" */
1:  movl (%esi), %eax
    testb %al, %al
    jz 2f
    cmpl $0x6b726f77, %eax              /* "work" … */
    jne 4f
    cmpb $'=', 4(%esi)                  /* … and not a part of the kernel's path */
    je 2f
4:  incl %esi
    jmp 1b
2:  movzbl 8(%esi), %ebp                /* "work=loop": 'p'; "near": 'r'; "walk": 'k' */

    enter_long_mode
    movl $FAR_MASK, %r8d
    cmpb $'k', %bpl
    je walk
    movl $NEAR_MASK, %r8d
    cmpb $'r', %bpl
    je walk
    cmpb $'i', %bpl
    je identify
    cmpb $'e', %bpl
    je done

    movl $LOOP_ROUNDS, %ecx
    movl $12345, %eax
1:  leaq 7(%rax,%rax,4), %rax
    movq %rax, %rdx
    shrq $7, %rdx
    xorq %rdx, %rax
    addq %rcx, %rsi
    subq %rax, %rdi
    testl $64, %eax
    decl %ecx
    jnz 1b
    jmp done

walk:
    movl $WALK_ROUNDS, %ecx
    xorl %eax, %eax
1:  addq WALK_BASE(%rax), %rdx
    addl $0x1040, %eax
    andl %r8d, %eax
    decl %ecx
    jnz 1b
    jmp done

identify:
    movl $CPUID_ROUNDS, %esi
1:  xorl %eax, %eax
    cpuid
    decl %esi
    jnz 1b

done:
    xorl %eax, %eax
    outb %al, $0xf4
1:  cli
    hlt
    jmp 1b

    long_mode_data
