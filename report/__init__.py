"""Figures, tables and the page of a study, from stored data alone.

May not live here: torch, HTTP, a database. What a report needs is read through `report.material.StudySource`.
"""
