"""`make demo`: the three jobs on one machine, told step by step."""
