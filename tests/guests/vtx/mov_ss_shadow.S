# SDM 25.4.2: MOV SS blocks interrupts and debug exceptions for one instruction.
#? expect HLT interruptibility=2
    mov $0x10, %eax
    mov %eax, %ss
    hlt
