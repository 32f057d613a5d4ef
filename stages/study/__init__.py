"""Variants of one recipe, trained from the same base at the same cost, and compared."""
