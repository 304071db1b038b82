# SDM 25.6.2, 28.2.1: INVLPG exiting; the qualification is the linear address.
#? set primary 9
#? expect INVLPG qual=0x5008 length=4
#? expect HLT
    mov $0x5000, %rbx
    invlpg 8(%rbx)
    hlt
