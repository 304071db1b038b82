# SDM 25.6.2: CR8-load and CR8-store exiting.
#? set primary 19
#? set primary 20
#? expect CR_ACCESS qual=0x008
#? expect CR_ACCESS qual=0x318
#? expect HLT
    mov %rax, %cr8
    mov %cr8, %rbx
    hlt
