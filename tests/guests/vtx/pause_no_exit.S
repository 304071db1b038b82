# SDM 25.6.2: without "PAUSE exiting", and at CPL 0 without PAUSE-loop exiting, PAUSE does not exit.
#? expect HLT
    pause
    hlt
