# SDM 30.3: with "use TPR shadow", MOV CR8 reads and writes the virtual TPR.
#? set primary 21
#? virtualapic
#? expect HLT rbx=5
#? check vapic 0x80 0x50
    mov $5, %eax
    mov %rax, %cr8
    mov %cr8, %rbx
    hlt
