"""The command line: one file a command. Alone in reading arguments, printing and exiting."""
