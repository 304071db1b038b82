# SDM 25.6.2: PAUSE exiting.
#? set primary 30
#? expect PAUSE length=2
#? expect HLT
    pause
    hlt
