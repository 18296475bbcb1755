"""Studies that take many minutes: not tests, but where figures of the documentation come from."""
