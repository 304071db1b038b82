# SDM 26.5.1: the VMX-preemption timer with value 0 exits before the first instruction.
#? set pin 6
#? field 0x482e = 0
#? expect PREEMPTION_TIMER rip=start
#? field 0x482e = 2000
#? expect PREEMPTION_TIMER
    jmp .
