# SDM 29.4.3.3: without VPIDs a VM entry and a VM exit drop linear and combined mappings.
#? clear secondary 5
#? expect HLT rax=0x11
#? expect HLT rax=0x22
    movb $0x11, 0x200000
    movb $0x22, 0x400000
    xor %eax, %eax
    mov 0x200000, %al
    xorq $0x600000, 0x12008
    hlt
    mov 0x200000, %al
    hlt
