"""What runs again when something changed: a step, and all that follows from it."""

READ = {"compare", "tables", "advise", "figures", "report"}
"""What people read: of the whole grid."""
MEASURED = {"evaluate", *READ}
DECIDED = {"cascade", "cost", *MEASURED}
SCORED = {"score", *DECIDED}
