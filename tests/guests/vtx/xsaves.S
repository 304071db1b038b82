# SDM 25.3: XSAVES is #UD without "enable XSAVES/XRSTORS"; with it and IA32_XSS = 0 nothing exits.
#? field 0x6804 |= 0x40000
#? set exit 9
#? field 0x4004 = 0x40
#? expect EXCEPTION_OR_NMI info=0x80000306
#? do skip 4
#? set secondary 20
#? expect HLT
#? check gpa8 0x300208 0x8000000000000001
    mov $3, %eax
    xor %edx, %edx
    xsaves 0x300000
    xsaves 0x300000
    hlt
