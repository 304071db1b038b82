# SDM 26.1.3, 26.3: a write that differs from the read shadow in a host-owned bit exits; reads show the shadow.
#? field 0x6000 = 0x8
#? field 0x6004 = 0x8
#? expect HLT rax=0x8
#? expect CR_ACCESS qual=0x000
#? expect HLT
    mov %cr0, %rax
    and $8, %eax
    hlt
    mov %cr0, %rax
    and $~8, %rax
    mov %rax, %cr0
    hlt
