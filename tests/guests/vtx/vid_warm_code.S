# SDM 30.1.4, 30.1.5: self-IPI and EOI of code that is executed often: each interrupt comes behind the write of ICR.
#? set primary 21
#? set secondary 0
#? set secondary 8
#? set secondary 9
#? virtualapic
#? apicaccess 0x500000
#? expect HLT rdi=20000 rsi=0 rdx=20000
#? check field 0x0810 0x61
#? check vapic 0xa0 0
#? eoiexit 0x61
#? expect VIRTUALIZED_EOI qual=0x61 rip=ended
    mov $0x500000, %rbx
    lea handler(%rip), %rax # its gate: vector 61H of the IDT at 2000H
    mov %ax, 0x2610
    shr $16, %rax
    mov %ax, 0x2616
    xor %edi, %edi
    xor %esi, %esi
    xor %edx, %edx
    mov $20000, %ecx
    lea after(%rip), %r9
    sti
again:
    inc %edx
    movl $0x40061, 0x300(%rbx)
after:
    mov 0x80(%rbx), %eax
    add %eax, %esi
    dec %ecx
    jnz again
    cli
    movl $0x40061, 0x300(%rbx) # waits for STI
    sti
    hlt
    nop
handler:
    cmp %r9, (%rsp)
    je 1f
    cmp $0, %ecx
    je 1f
    inc %esi
1:  inc %edi
    movl $0, 0xb0(%rbx)
ended:
    iretq
