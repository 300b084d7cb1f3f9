"""The exit statuses of all commands."""

# 75 is EX_TEMPFAIL of sysexits.h: interrupted, and to be continued by the same command. 130 is the shell's for Ctrl-C:
# a command that leaves nothing to continue.
EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE, EXIT_STOPPED = 0, 1, 2, 75, 130
