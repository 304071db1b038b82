# SDM 25.6.2 "unrestricted guest": CR0.PE and PG may be 0.
#? mode real
#? expect HLT rax=0x1234
    .code16
    mov $0x1200, %ax
    mov %ax, %ds
    mov $0x34, %al
    mov $0x12, %ah
    hlt
