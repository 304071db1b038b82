# SDM 26.3: with "use TSC offsetting", RDTSC returns the counter plus the TSC offset.
#? set primary 3
#? field 0x2010 = 0x4000000000000000
#? expect HLT rax=0x40000000
    rdtsc
    shl $32, %rdx
    shr $32, %rdx
    mov %edx, %eax
    and $0x7fff0000, %eax
    hlt
