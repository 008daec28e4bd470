"""Figures, tables and the page of a study, from stored data only.

A report reads its data through `report.material.StudySource`. Not allowed here: torch, HTTP, a database.
"""
