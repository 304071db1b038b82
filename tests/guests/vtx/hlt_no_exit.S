# SDM 26.4.2, 26.6.2: without HLT exiting, HLT enters the HLT activity state; an external interrupt ends it.
#? clear primary 7
#? kick
#? expect EXTERNAL_INTERRUPT activity=1
    hlt
