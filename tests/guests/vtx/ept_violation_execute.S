# SDM table 28-7: an instruction fetch from a page that is not executable.
#? map 0x400000 3
#? expect EPT_VIOLATION qual=0x19c gpa=0x400000
    mov $0x400000, %eax
    jmp *%rax
