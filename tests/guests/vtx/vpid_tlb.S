# SDM 29.4.3.1: a mapping changed without invalidation may be used; INVLPG makes the new one be used.
#? expect HLT rax=0x11
#? expect HLT rax=0x22
    movb $0x11, 0x200000
    movb $0x22, 0x400000
    mov 0x200000, %al
    and $0xff, %eax
    hlt
    xorq $0x600000, 0x12008
    invlpg 0x200000
    mov 0x200000, %al
    and $0xff, %eax
    hlt
