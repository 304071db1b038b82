# SDM 25.8, 26.1.1: clearing a CR4 bit that VMX operation fixes to 1 (VMXE), owned by the guest, is #GP and no exit.
#? field 0x4004 = 0x2000
#? expect EXCEPTION_OR_NMI info=0x80000b0d error=0
    mov %cr4, %rax
    and $~0x2000, %rax
    mov %rax, %cr4
    hlt
