/*
 * The VM entry of our freestanding guests, as a macro for their start.S.
 *
 * int vm_run(struct guest_regs *regs, int resume): loads the guest's registers, enters, and returns 0 after a VM exit
 * (which goes to vm_exited), or RFLAGS, which is not 0, where the entry itself failed.
 */
    .macro vm_run_function
    .globl vm_run, vm_exited
vm_run:
    pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15
    pushq %rdi
    movl $0x6c14, %eax                  /* HOST_RSP */
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
2:  pushfq
    popq %rax
    popq %rdi
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
    .endm
