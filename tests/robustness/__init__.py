"""Damaged inputs of all kinds through the real entry points, each in a process of its own, beside an undamaged twin."""
