# SDM 26.5.2: the monitor trap flag exits after one instruction.
#? set primary 27
#? expect MONITOR_TRAP rip=second
#? expect MONITOR_TRAP rip=third
    nop
second:
    nop
third:
    nop
