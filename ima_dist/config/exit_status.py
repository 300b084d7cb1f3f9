"""The exit statuses of all commands."""

# 75 is EX_TEMPFAIL of sysexits.h: interrupted, and to be continued by the same command.
EXIT_DONE, EXIT_FAILED, EXIT_INPUT, EXIT_REQUEUE = 0, 1, 2, 75
