"""The command line: `main` parses it, `info` and `demo` are commands, and the commands share the other modules."""
