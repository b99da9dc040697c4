"""Trainings whose outcome the project reports."""
