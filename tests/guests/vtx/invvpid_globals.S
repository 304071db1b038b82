# SDM 29.4.3, 31.3: INVVPID type 3 drops those of one VPID but for global ones.
#? expect HLT rax=0x11
#? expect HLT rax=0x11
#? field 0x0 = 2
#? expect HLT rax=0x22
#? field 0x0 = 1
#? expect HLT rax=0x11
#? invvpid 3 1
#? expect HLT rax=0x22
    movb $0x11, 0x200000
    movb $0x22, 0x400000
    xor %eax, %eax
    mov 0x200000, %al
    hlt
    xorq $0x600000, 0x12008
1:  mov 0x200000, %al
    hlt
    jmp 1b
