"""`bitnet keys`: who may use a server, and how much."""
