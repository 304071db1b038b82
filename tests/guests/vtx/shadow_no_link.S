# SDM 31.3 (VMREAD): with a VMCS link pointer of all ones VMREAD and VMWRITE in a guest are VMfailInvalid.
#? set secondary 14
#? shadow
#? field 0x2800 = 0xffffffffffffffff
#? expect HLT rbx=0x77 rdx=1
    mov $0x77, %ebx
    mov $0x681e, %eax
    vmread %rax, %rbx
    setc %dl
    movzbl %dl, %edx
    hlt
