"""The command line: `lwr STEP`, the same commands that the rules call."""
