# SDM 25.3: with "enable RDTSCP" and no RDTSC exiting RDTSCP and RDPID read IA32_TSC_AUX and do not exit.
#? set secondary 3
#? expect HLT rcx=0x1234 rbx=0x1234
    mov $0xc0000103, %ecx
    mov $0x1234, %eax
    xor %edx, %edx
    wrmsr
    rdpid %rbx
    rdtscp
    hlt
