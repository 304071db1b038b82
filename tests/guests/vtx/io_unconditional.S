# SDM 25.6.2, table 28-5: unconditional I/O exiting; size, direction, immediate form, port.
#? set primary 24
#? expect IO qual=0x00800040 length=2
#? expect IO qual=0x03f80009 length=2
#? expect IO qual=0x03f8000b length=1
#? expect HLT
    outb %al, $0x80
    mov $0x3f8, %edx
    inw %dx, %ax
    inl %dx, %eax
    hlt
