# SDM 26.1.2, 28.2.5: VMX instructions exit unconditionally, with their operands in the instruction information.
#? expect VMCALL length=3
#? expect VMXOFF length=3
#? expect VMLAUNCH length=3
#? expect VMRESUME length=3
#? expect VMCLEAR length=5 qual=8 infomask=0x0fc38000:0x00418000
#? expect VMPTRLD qual=0x10
#? expect VMXON
#? expect VMPTRST
#? expect VMREAD infomask=0xf0000478:0x30000408
#? expect VMWRITE infomask=0xf0000478:0x30000408
#? expect INVEPT infomask=0xf0000000:0x10000000
#? expect INVVPID infomask=0xf0000000:0x20000000
#? expect HLT
    vmcall
    vmxoff
    vmlaunch
    vmresume
    vmclear 8(%rax)
    vmptrld 16(%rbx)
    vmxon (%rax)
    vmptrst (%rax)
    vmread %rbx, %rcx
    vmwrite %rcx, %rbx
    invept (%rax), %rcx
    invvpid (%rax), %rdx
    hlt
