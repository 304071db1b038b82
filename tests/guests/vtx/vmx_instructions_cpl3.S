# SDM 26.1.1: VMX instructions at CPL > 0 exit all the same (VMCALL), others by privilege: here VMCALL.
#? expect VMCALL cpl=3
    pushq $0x33
    pushq $0x7000
    pushq $0x2
    pushq $0x2b
    lea 1f(%rip), %rax
    push %rax
    iretq
1:  vmcall
