"""Networks, their stages, weights and heads."""
