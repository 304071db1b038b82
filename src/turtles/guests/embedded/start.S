/*
 * Entry of the embedded tower: into long mode; interrupt stubs; the VM-entry trampoline.
 * It keeps a pristine copy of itself at 2 MiB: that is what a hypervisor loads into its guest.
 */
#include "long_mode.h"
#include "vm_run.h"

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

    vm_run_function
    .section .note.GNU-stack, "", @progbits
