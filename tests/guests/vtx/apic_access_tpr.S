# SDM 30.4.2, 30.4.3: with "use TPR shadow", the TPR at offset 80H is read and written without exit.
#? set primary 21
#? set secondary 0
#? virtualapic
#? apicaccess 0x500000
#? expect HLT rax=0x30
#? check vapic 0x80 0x30
    mov $0x500000, %rbx
    movl $0x30, 0x80(%rbx)
    mov 0x80(%rbx), %eax
    hlt
