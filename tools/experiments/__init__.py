"""Resumable trainings in their own processes, their progress, and tables of their results."""
