# SDM 28.3.1: "save VMX-preemption timer value": what is left is saved at each exit, and goes on from there.
#? set pin 6
#? set exit 22
#? field 0x482e = 0x10000
#? expect HLT
#? check field 0x482e 0x1ff00:0xff00
#? field 0x482e = 1
#? expect PREEMPTION_TIMER
#? check field 0x482e 0
    mov $3200, %ecx
1:  loop 1b
    hlt
    jmp .
