"""The command line: `main` reads it, `info` and `demo` are its commands, the rest is what commands share."""
