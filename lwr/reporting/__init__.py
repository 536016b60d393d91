"""Tables, recommendation, figures and report of a grid."""
