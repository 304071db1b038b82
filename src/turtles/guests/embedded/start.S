/*
 * Entry of the embedded tower: into long mode; interrupt stubs; the VM-entry trampoline.
 * It keeps a pristine copy of itself at 2 MiB: that is what a hypervisor loads into its guest.
 */
#include "long_mode.h"

#define PRISTINE 0x200000

    multiboot_header

    .section .boot, "ax"
    .code32
    .globl _start
_start:
    cli
    cld
    movl %eax, %ebp                 /* Multiboot magic */
    movl $image_start, %esi
    movl $PRISTINE, %edi
    movl $image_end, %ecx
    subl %esi, %ecx
    rep movsb
    movl $bss_start, %edi
    movl $bss_end, %ecx
    subl %edi, %ecx
    xorl %eax, %eax
    rep stosb
    movl %ebp, boot_magic
    movl %ebx, boot_info

    enter_long_mode
    movl boot_magic, %edi
    movl boot_info, %esi
    call main
1:  cli
    hlt
    jmp 1b

    long_mode_data

    .bss
    .globl tss
tss:  .skip 128
boot_magic: .skip 4
boot_info:  .skip 4

    .text
/* Exceptions 0..31 and the timer vector. Each stub leaves vector and error code on the stack. */
    .macro stub vector
    .align 16
    .if (\vector == 8) || (\vector >= 10 && \vector <= 14) || (\vector == 17)
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
    .rept 49
    stub i
    .set i, i + 1
    .endr

trap:
    pushq %rax; pushq %rcx; pushq %rdx; pushq %rsi; pushq %rdi
    pushq %r8; pushq %r9; pushq %r10; pushq %r11
    movq 72(%rsp), %rdi             /* vector */
    movq 80(%rsp), %rsi             /* error code */
    movq 88(%rsp), %rdx             /* rip */
    call on_trap
    popq %r11; popq %r10; popq %r9; popq %r8
    popq %rdi; popq %rsi; popq %rdx; popq %rcx; popq %rax
    addq $16, %rsp
    iretq

/*
 * int vm_run(struct guest_regs *regs, int resume): loads the guest's registers, enters, and returns
 * 0 after a VM exit, 1 where the entry itself failed (RFLAGS.CF or ZF).
 */
    .globl vm_run, vm_exited
vm_run:
    pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    pushq %rdi
    movl $0x6c14, %eax              /* HOST_RSP */
    vmwrite %rsp, %rax
    testl %esi, %esi
    movq 8(%rdi), %rcx
    movq 16(%rdi), %rdx
    movq 24(%rdi), %rbx
    movq 40(%rdi), %rbp
    movq 48(%rdi), %rsi
    movq 64(%rdi), %r8
    movq 72(%rdi), %r9
    movq 80(%rdi), %r10
    movq 88(%rdi), %r11
    movq 96(%rdi), %r12
    movq 104(%rdi), %r13
    movq 112(%rdi), %r14
    movq 120(%rdi), %r15
    movq 0(%rdi), %rax
    movq 56(%rdi), %rdi
    jz 1f
    vmresume
    jmp 2f
1:  vmlaunch
2:  popq %rdi
    movl $1, %eax
    jmp 3f
vm_exited:
    pushq %rdi
    movq 8(%rsp), %rdi
    movq %rax, 0(%rdi)
    movq %rcx, 8(%rdi)
    movq %rdx, 16(%rdi)
    movq %rbx, 24(%rdi)
    movq %rbp, 40(%rdi)
    movq %rsi, 48(%rdi)
    popq 56(%rdi)
    movq %r8, 64(%rdi)
    movq %r9, 72(%rdi)
    movq %r10, 80(%rdi)
    movq %r11, 88(%rdi)
    movq %r12, 96(%rdi)
    movq %r13, 104(%rdi)
    movq %r14, 112(%rdi)
    movq %r15, 120(%rdi)
    popq %rdi
    xorl %eax, %eax
3:  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx
    ret
    .section .note.GNU-stack, "", @progbits
