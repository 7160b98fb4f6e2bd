"""Trainings as steps of something larger: resumable runs, their progress, and tables of many of them."""
