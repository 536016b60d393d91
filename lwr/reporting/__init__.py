"""Tables, recommendation, figures and the report."""
