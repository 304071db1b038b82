# SDM 26.1.3: MOV to CR4 with a host-owned bit that differs.
#? field 0x6002 = 0x2000
#? field 0x6006 = 0
#? expect HLT rax=0
#? expect CR_ACCESS qual=0x004
#? expect HLT
    mov %cr4, %rax
    and $0x2000, %eax
    hlt
    mov %cr4, %rax
    or $0x2000, %rax
    mov %rax, %cr4
    hlt
