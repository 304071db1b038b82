# SDM 25.6.4, 26.1.3: I/O bitmaps; an access exits if any of its ports has its bit set; wrapping at FFFFH exits.
#? set primary 25
#? iobitmap 0x81
#? iobitmap 0x9000
#? expect IO qual=0x00810040
#? expect IO qual=0x00800041
#? expect IO qual=0x90000000
#? expect IO qual=0xffff0001
#? expect HLT
    outb %al, $0x80
    outb %al, $0x81
    outw %ax, $0x80
    mov $0x9000, %edx
    outb %al, %dx
    mov $0xffff, %edx
    outw %ax, %dx
    hlt
