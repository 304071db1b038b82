# SDM 27.3.2.1, 28.3.1: "load debug controls" loads DR7 and IA32_DEBUGCTL, "save debug controls" saves them.
#? field 0x681a = 0x10400
#? field 0x2802 = 0x1
#? expect HLT rax=0x10400 rdx=0 rbx=1
#? check field 0x681a 0x400
#? check field 0x2802 0x2
    mov $0x1d9, %ecx
    rdmsr
    mov %eax, %ebx
    mov $2, %eax
    wrmsr
    mov %dr7, %rax
    mov $0x400, %rsi
    mov %rsi, %dr7
    hlt
