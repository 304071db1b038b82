# SDM 30.1.2: a write of CR8 below the TPR threshold exits with reason 43, after the instruction.
#? set primary 21
#? virtualapic 0x50
#? field 0x401c = 4
#? expect TPR_BELOW_THRESHOLD rip=after
    mov $1, %eax
    mov %rax, %cr8
after:
    hlt
