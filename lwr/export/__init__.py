"""One exit, or all, for programs that know nothing of lwr; model cards and uploads."""
