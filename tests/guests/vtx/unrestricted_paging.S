# A guest may turn paging off and on again; EFER.LMA follows, and the entry control with it (SDM 28.3.1).
#? expect HLT
#? check field 0x4012 0x200:0x0
    ljmp *target(%rip)
target:
    .long 1f
    .word 0x18
    .code32
1:  mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    hlt
