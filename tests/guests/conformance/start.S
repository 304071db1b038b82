/*
 * Entry of the conformance guest: Multiboot 1, long mode with 4 GiB identity-mapped in 2-MiB pages that
 * user mode may use, a stub for each vector, the VM-entry trampoline.
 */
#include "long_mode.h"
#include "vm_run.h"

    multiboot_header

    .section .boot, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    movl $pdpt + 7, pml4
    movl $pd + 7, pdpt
    movl $pd + 0x1007, pdpt + 8
    movl $pd + 0x2007, pdpt + 16
    movl $pd + 0x3007, pdpt + 24
    movl $pd, %edi
    movl $0xe7, %eax
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b
    movl $0x620, %eax               /* CR4: PAE, OSFXSR, OSXMMEXCPT */
    movl %eax, %cr4
    movl $pml4, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          /* IA32_EFER: LME, NXE, SCE */
    rdmsr
    orl $0x901, %eax
    wrmsr
    movl $0x80010033, %eax          /* CR0: PG, WP, NE, ET, MP, PE */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode

    .code64
long_mode:
    movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %eax, %fs
    movl %eax, %gs
    movq $stack_top, %rsp
    movl %ebx, %edi
    call main
1:  cli
    hlt
    jmp 1b

    .data
    .align 16
    .globl gdt, gdt_pointer
gdt:
    .quad 0
    .quad 0x00af9b000000ffff        /* 08: 64-bit code */
    .quad 0x00cf93000000ffff        /* 10: data */
    .quad 0x00cf9b000000ffff        /* 18: 32-bit code */
    .quad 0x00cff3000000ffff        /* 20: user data */
    .quad 0x00affb000000ffff        /* 28: user 64-bit code */
    .quad 0x00cffb000000ffff        /* 30: user 32-bit code */
    .quad 0x00af1b000000ffff        /* 38: 64-bit code, not present */
    .quad 0x00cf13000000ffff        /* 40: data, not present */
    .quad 0                         /* 48: LDT or other, filled in by tests */
    .quad 0
    .quad 0, 0                      /* 58: TSS, filled in by main.c */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .bss
    .align 4096
    .globl pml4, pdpt, pd, tss, stack_top, ist_top
pml4: .skip 4096
pdpt: .skip 4096
pd:   .skip 16384
tss:  .skip 128
    .align 16
    .skip 32768
stack_top:
    .skip 8192
ist_top:

    .text
    .macro stub vector
    .align 16
    .if (\vector == 8) || (\vector >= 10 && \vector <= 14) || (\vector == 17) || (\vector == 21)
    nop
    nop
    .else
    pushq $0
    .endif
    pushq $\vector
    jmp trap
    .endm

    .align 16
    .globl trap_stubs
trap_stubs:
    .set i, 0
    .rept 256
    stub i
    .set i, i + 1
    .endr

trap:
    pushq %r15; pushq %r14; pushq %r13; pushq %r12; pushq %r11; pushq %r10; pushq %r9; pushq %r8
    pushq %rdi; pushq %rsi; pushq %rbp; pushq %rbx; pushq %rdx; pushq %rcx; pushq %rax
    movq %rsp, %rdi
    cld
    movq %rsp, %rbx
    andq $-16, %rsp
    call on_trap
    movq %rbx, %rsp
    popq %rax; popq %rcx; popq %rdx; popq %rbx; popq %rbp; popq %rsi; popq %rdi
    popq %r8; popq %r9; popq %r10; popq %r11; popq %r12; popq %r13; popq %r14; popq %r15
    addq $16, %rsp
    iretq

/* int save(struct point *): 0, or what `restore` was given. */
    .globl save, restore
save:
    movq %rbx, 0(%rdi); movq %rbp, 8(%rdi); movq %r12, 16(%rdi); movq %r13, 24(%rdi)
    movq %r14, 32(%rdi); movq %r15, 40(%rdi)
    movq (%rsp), %rax
    movq %rax, 48(%rdi)
    leaq 8(%rsp), %rax
    movq %rax, 56(%rdi)
    xorl %eax, %eax
    ret
restore:
    movl %esi, %eax
    movq 0(%rdi), %rbx; movq 8(%rdi), %rbp; movq 16(%rdi), %r12; movq 24(%rdi), %r13
    movq 32(%rdi), %r14; movq 40(%rdi), %r15
    movq 56(%rdi), %rsp
    jmp *48(%rdi)

    vm_run_function
    .section .note.GNU-stack, "", @progbits
