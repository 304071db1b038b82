# SDM 26.3: with NMI exiting and without virtual NMIs, IRET does not affect blocking by NMI.
#? set pin 3
#? field 0x4824 = 8
#? expect HLT interruptibility=8
    mov %rsp, %rax
    pushq $0x10
    push %rax
    pushfq
    pushq $8
    lea after(%rip), %rax
    push %rax
    iretq
after:
    hlt
