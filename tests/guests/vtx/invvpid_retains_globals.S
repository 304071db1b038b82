# SDM 31.3: INVVPID type 3 retains global translations, which may be used; type 1 does not.
#? expect HLT rax=0x11
#? invvpid 3 1
#? expect HLT rax=0x11
#? invvpid 1 1
#? expect HLT rax=0x22
    mov %cr4, %rax
    or $0x80, %rax
    mov %rax, %cr4
    orq $0x100, 0x12008
    movb $0x11, 0x200000
    movb $0x22, 0x400000
    xor %eax, %eax
    mov 0x200000, %al
    hlt
    xorq $0x600000, 0x12008
1:  mov 0x200000, %al
    hlt
    jmp 1b
