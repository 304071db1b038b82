# SDM 29.3.3.1: a writable page that is not readable is misconfigured.
#? map 0x400000 2
#? expect EPT_MISCONFIGURATION gpa=0x400000
    mov 0x400000, %al
