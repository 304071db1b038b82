# SDM 29.3.2: an EPT PDPTE with bit 7 set maps 1 GiB; the guest's own PDPTE maps as much (SDM 4.5).
#? map1g 0x40000000 7
#? expect HLT rax=0x5a
#? map1g 0x40000000 1
#? expect EPT_VIOLATION qual=0x18a gpa=0x40300001 linear=0x40300001
    movb $0x5a, 0x300000
    movq $0x40000087, 0x11008
    xor %eax, %eax
    mov 0x40300000, %al
    hlt
    movb $1, 0x40300001
