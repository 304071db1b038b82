# SDM 26.4.2, table 28-2: a task switch exits; selector and source.
#? mode protected
#? expect TASK_SWITCH qual=0x80000028
    .code32
    ljmp $0x28, $0
