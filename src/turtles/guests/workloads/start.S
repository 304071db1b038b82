/*
 * Workloads that measure silicon. Multiboot 1 entry, long mode with the first GiB mapped by 2-MiB pages,
 * then one loop, chosen by the fourth character of "work=loop", "work=near", "work=walk" or "work=cpuid";
 * "work=none" has none. Each runs a fixed number of instructions and ends with a debug-exit of 0.
 */
#define LOOP_ROUNDS  50000000           /* 9 instructions each */
#define WALK_ROUNDS  50000000           /* 5 instructions each */
#define CPUID_ROUNDS 200000             /* 4 instructions each */
#define WALK_BASE    0x1000000          /* from 16 MiB on, a load every 4 KiB + 64 bytes */
#define NEAR_MASK    0x1fffff           /* over 2 MiB: pages that a TLB holds */
#define FAR_MASK     0x3ffffff          /* over 64 MiB: pages that it does not */

    .section .multiboot, "a"
    .align 4
    .long 0x1badb002, 3, -(0x1badb002 + 3)

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

    movl $pdpt + 3, pml4
    movl $pd + 3, pdpt
    movl $pd, %edi
    movl $0x83, %eax
    movl $512, %ecx
3:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 3b
    movl $0x20, %eax                    /* CR4.PAE */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              /* IA32_EFER.LME */
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $0x80000031, %eax              /* CR0: PG, NE, ET, PE */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode

    .code64
long_mode:
    movl $stack, %esp
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

    .align 8
gdt:
    .quad 0
    .quad 0x00af9b000000ffff            /* 64-bit code */
    .quad 0x00cf93000000ffff            /* data */
gdt_pointer:
    .word . - gdt - 1
    .quad gdt

    .bss
    .align 4096
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 4096
    .skip 4096
stack:
