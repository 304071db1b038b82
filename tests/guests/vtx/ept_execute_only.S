# SDM 29.3.2: execute-only pages run and cannot be read.
#? poke 0x400000 f4
#? map 0x400000 4
#? expect HLT
#? do rip = start2
#? expect EPT_VIOLATION qual=0x1a1
    mov $0x400000, %eax
    jmp *%rax
start2:
    mov 0x400000, %al
